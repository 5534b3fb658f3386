"""Datasets; each maps names to labels itself, never by file order.

Nothing is imported here, because caption data need no mmdet. ``smartclip_det.register_detection`` and
``smartclip_det.register_alignment`` register what they need.
"""
