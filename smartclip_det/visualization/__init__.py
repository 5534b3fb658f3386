"""Drawing: boxes, similarity maps, mask strips. No metric code."""

from smartclip_det.visualization.draw import colour_of, draw_boxes, draw_heatmap, draw_mask_strip
from smartclip_det.visualization.grounding import grounding_panel, sheet

__all__ = ["colour_of", "draw_boxes", "draw_heatmap", "draw_mask_strip", "grounding_panel", "sheet"]
