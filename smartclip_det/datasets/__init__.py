"""Data sets; each maps names to labels by itself, never by file order.

Nothing is imported here: caption data need no mmdet. ``smartclip_det.parts`` and ``smartclip_det.alignment_parts``
register what they need.
"""
