"""Option values that can be listed without torch; the modules that implement them import them from here."""

from __future__ import annotations

#: Last transformer block of the dense map (models.towers.vision_transformer).
DENSE_MODES = ("vanilla", "value", "qq_kk", "clearclip")
#: How a region vector is computed (models.regions).
VIEWS = ("crop", "blur", "circle", "dense", "mask")
#: Weights of dense-map cells in a region: their own norm, or uniform (models.regions).
POOLINGS = ("own", "unit")
#: Views of the training-free predictor (``both``: dense and crop).
REGION_VIEWS = ("dense", "crop", "both")
#: Box sources of the training-free predictor; ``KIND:WHAT`` gives details (apis.box_sources).
BOX_SOURCES = ("torchvision", "owlv2", "mm-grounding-dino", "llmdet", "transformers", "mmdet")
#: Measurements of ``bench predict``.
PREDICT_PARTS = ("stages", "owlv2", "batches", "memory")
#: How an expression is interpreted (zero-shot grounding).
READINGS = ("expression", "chunks", "both")
#: How an image is made square (utils.images). ``crop``: resize the shorter side to S, centre crop (CLIP). ``pad``:
#: resize the longer side to S, pad right and bottom with the mean colour (detectors). ``squash``: resize both sides.
FITS = ("crop", "pad", "squash")
#: Scoring policy.
#: Scoring policy.
ACTIVATIONS = ("softmax", "sigmoid")
BACKGROUNDS = ("zero", "text", "text_ones", "learned")
#: Norm of a text in its cosine: of the full vector, or of the masked one.
TEXT_NORMS = ("full", "masked")
PRESENCE_SOURCES = ("pooled", "cells")
TEMPLATE_ORDERS = ("per_template", "average_state", "average_mask", "union_mask")
TEMPLATE_SETS = ("none", "photo", "clip_80", "vild_63")
#: Controls of a test: ``text_shuffled`` scores each class or phrase with the text of another one.
CONTROLS = ("none", "text_shuffled")
#: Image-text retrieval sets.
CAPTION_SETS = (
    "coco-5k",
    "flickr30k-full",
    "flickr30k-31014",
    "flickr30k-1k",
    "urban1k",
    "sharegpt4v-1k",
    "sharegpt4v-1k-first",
    "docci",
    "dci",
    "long-dci",
    "iiw",
)
#: Which texts of an image are used (caption groups).
CAPTION_TEXTS = ("all", "long", "short")
#: Label layouts that can be converted to COCO JSON; YOLO_ROWS: how YOLO lines with more than four numbers are read.
LABEL_LAYOUTS = ("yolo", "voc")
#: Output layouts of a labelled folder.
LABEL_FORMATS = ("coco", "yolo", "voc", "label-studio")
YOLO_ROWS = ("auto", "boxes", "outlines")
#: How VOC objects marked difficult are converted.
DIFFICULT_RULES = ("ignore", "keep", "drop")
#: Output layouts of referring expressions.
EXPRESSION_LAYOUTS = ("jsonl", "mdetr", "odvg", "refs", "transvg")
#: Complete expression sets with known counts.
EXPRESSION_SETS = (
    "refcoco-unc",
    "refcoco+-unc",
    "refcocog-umd",
    "refcocog-google",
    "refcoco-google",
    "grefcoco-unc",
    "flickr-transvg",
    "referit-transvg",
    "ref-l4",
)

#: Mixed-precision types for training; ``auto``: bf16 if the device supports it.
AMP_DTYPES = ("auto", "bf16", "fp16")
