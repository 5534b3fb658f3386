"""What the field's protocols leave open: the choices, of which the first is taken unless another is asked for.

No torch and no numpy: the command line lists them.
"""

from __future__ import annotations

#: Evaluators of average precision: ours on faster-coco-eval, and the field's own (pycocotools, lvis-api, MMDetection).
BACKENDS = ("fast", "reference")
IOU_TYPES = ("bbox", "segm")
#: Which images of a detection file are scored: all; those with a box of the protocol's classes; those that the
#: ``.partial.jsonl`` file of a run that died has a line for.
IMAGES = ("all", "annotated", "predicted")
#: Readings of ov-coco: one run over base and novel classes, or the older, easier one in which the detector was given
#: the novel names alone; the two are never comparable.
SETTINGS = ("joint", "target-only")
#: D-cube: which sentences are asked of an image, those of its scenario or all of them.
SCENARIOS = ("intra", "inter")
#: VOC: objects marked difficult count, as in the common re-implementations, or are left out, as in the devkit.
DIFFICULT = ("count", "ignore")
#: Overlap of two boxes.
OVERLAPS = ("iou", "giou")
#: Flickr30k Entities: which box of a phrase counts, any one of its boxes or the smallest box around all of them.
BOX_RULES = ("any", "merged")
#: Corners of predicted boxes of sentences.
BOX_FORMATS = ("xyxy", "xywh")

#: Detections per image and class that COCO's average recall is told at; average precision is at the last.
COCO_LIMITS = (1, 10, 100)
#: Detections per image over all classes.
LVIS_LIMIT = 300
NO_LIMIT = -1
#: Boxes of gRefCOCO below this score are not predicted (the released evaluator).
GREC_SCORE = 0.7
#: How it matches boxes.
GREC_OVERLAP = "giou"
