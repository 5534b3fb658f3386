"""Words that options take, where no torch is needed to list them; the modules that give them meaning import them."""

from __future__ import annotations

#: Last block of the dense map (vision transformer).
DENSE_MODES = ("vanilla", "value", "qq_kk", "clearclip")
#: How a region vector is made (regions).
VIEWS = ("crop", "blur", "circle", "dense", "mask")
#: How cells of a dense map weigh in a region: by their own length, or alike (regions).
POOLINGS = ("own", "unit")
#: Views that the training-free predictor joins (``both``: dense and crop).
REGION_VIEWS = ("dense", "crop", "both")
#: Sources of boxes of the training-free predictor, as words; ``KIND:WHAT`` tells more (apis.box_sources).
BOX_SOURCES = ("torchvision", "owlv2", "mm-grounding-dino", "llmdet", "transformers", "mmdet")
#: What ``bench predict`` measures.
PREDICT_PARTS = ("stages", "owlv2", "batches", "memory")
#: How an expression is read (zero-shot grounding).
READINGS = ("expression", "chunks", "both")
#: How an image becomes a square (images). ``crop``: shorter side to S, centre crop (CLIP). ``pad``: longer side to S,
#: the rest (right, bottom) in the mean colour, as detectors see it. ``squash``: both sides to S.
FITS = ("crop", "pad", "squash")
#: Scoring policy.
ACTIVATIONS = ("softmax", "sigmoid")
BACKGROUNDS = ("zero", "text", "text_ones", "learned")
#: Norm of a text in its cosine: of all of it, or of what its mask keeps.
TEXT_NORMS = ("full", "masked")
PRESENCE_SOURCES = ("pooled", "cells")
TEMPLATE_ORDERS = ("per_template", "average_state", "average_mask", "union_mask")
TEMPLATE_SETS = ("none", "photo", "clip_80", "vild_63")
#: Sets of image-text retrieval.
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
#: Which texts of an image are taken (caption groups).
CAPTION_TEXTS = ("all", "long", "short")
#: Layouts of labels that become COCO json, and what lines of YOLO with more than four numbers are.
LABEL_LAYOUTS = ("yolo", "voc")
#: Layouts in which a labelled folder is written.
LABEL_FORMATS = ("coco", "yolo", "voc", "label-studio")
YOLO_ROWS = ("auto", "boxes", "outlines")
#: What becomes of difficult objects of VOC.
DIFFICULT_RULES = ("ignore", "keep", "drop")
#: Layouts of expressions that are written.
EXPRESSION_LAYOUTS = ("jsonl", "mdetr", "odvg", "refs", "transvg")
#: Full sets of expressions, whose counts are known.
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

#: Types of mixed precision in training; ``auto``: bf16 where the device has it.
AMP_DTYPES = ("auto", "bf16", "fp16")
