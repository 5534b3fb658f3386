"""Options that published protocols leave open. The first choice of each is the default.

Free of torch and numpy, because the command line lists them.
"""

from __future__ import annotations

#: Average-precision backends: ours, on faster-coco-eval, or the reference code (pycocotools, lvis-api, MMDetection).
BACKENDS = ("fast", "reference")
IOU_TYPES = ("bbox", "segm")
#: Images of a detection file to score: all; those with a box of the protocol's classes; or those that the
#: ``.partial.jsonl`` file of an interrupted run has a line for.
IMAGES = ("all", "annotated", "predicted")
#: OV-COCO settings: base and novel classes jointly, or the older and easier one in which the detector is given only
#: the novel names; the two are not comparable.
SETTINGS = ("joint", "target-only")
#: D-cube: an image is queried with the sentences of its own scenario, or with all of them.
SCENARIOS = ("intra", "inter")
#: VOC: count objects marked difficult, as common re-implementations do, or ignore them, as the devkit does.
DIFFICULT = ("count", "ignore")
#: Overlap measure of two boxes.
OVERLAPS = ("iou", "giou")
#: Flickr30k Entities: a phrase is matched with any of its boxes, or with the box that encloses all of them.
BOX_RULES = ("any", "merged")
#: Box format of predictions for referring expressions.
BOX_FORMATS = ("xyxy", "xywh")

#: COCO's limits on detections per image and class for average recall; average precision uses the last.
COCO_LIMITS = (1, 10, 100)
#: Detections per image over all classes.
LVIS_LIMIT = 300
NO_LIMIT = -1
#: gRefCOCO: boxes with a lower score are dropped (released evaluator of GREC, arXiv 2308.16182).
GREC_SCORE = 0.7
#: gRefCOCO: overlap measure used for matching.
GREC_OVERLAP = "giou"
