"""Texts of the toy report that do not depend on a run's numbers."""

from __future__ import annotations

IDEA_TEXT = (
    "CLIP compares a whole image with a whole caption: both become vectors, and their cosine says how well they fit. "
    "A caption, though, speaks of a part of its image only, and everything else that the image shows pulls the cosine "
    "down.",
    "SmartCLIP lets each text choose, with a mask of zeros and ones over the dimensions of these vectors, the part of "
    "the image that it is compared with: the cosine is taken on the dimensions that the mask keeps. The mask is read "
    "from the text alone, so one image vector serves any number of texts. This page shows what that gives on drawn "
    "scenes: alignment with captions, then boxes of shapes that no training box ever showed, then phrases that point "
    "at one object.",
)

ALIGNMENT_TERMS = {
    "masks hard": "The method: each text is compared on the dimensions that its own mask keeps.",
    "masks off": "The plain cosine on all dimensions. For SmartCLIP's weights this shows what its masks are worth to "
    "them; what masks are worth to a user shows against CLIP, which never had any. (“Soft”, the mask's probabilities "
    "instead of zeros and ones, is a third way that the library offers; it is left out here.)",
}
CONTROL_TERMS = {
    "another text's mask": "A control: the text is right, its mask is that of another text. If this does as well, "
    "masking helps for a reason other than which dimensions the text chose.",
    "random masks": "A control: as many dimensions as the text's mask keeps, drawn at random.",
}

#: Measured apart from any run, so it is the same on every page.
BINDING = (
    "What limits colour + shape for both is binding: which colour belongs to which shape (last column: how often a "
    "true picture beats one that shows both words on different objects; 0.5 is chance). In trainings of the same "
    "losses on descriptions of the scenes instead of pictures (nothing to see wrongly), true pictures were told from "
    "those that show the shape alone with an area under the ROC curve of 0.97 (CLIP 0.975, masked 0.974), and from "
    "those that show the colour alone with 1.00 (0.999, 0.998), but from those that show both on different objects "
    "with 0.75 only, masked or not. Masks choose dimensions of one vector; they do not say which object a "
    "dimension is of."
)

PROBE_TEXT = (
    "Annotated boxes of the validation pictures, named among all 18 shapes by the towers alone. “Dense” takes the "
    "mean of the patch vectors in the box, out of one pass over the whole picture, which is what the detector sees; "
    "“crop” encodes the box as a picture of its own. What a detector on frozen towers can know of novel shapes rests "
    "on the dense columns."
)

DETECTION_TEXT = (
    "Heads are trained on the frozen SmartCLIP image tower with boxes of the 12 base shapes ({images:,} pictures). "
    "All 18 names are asked for at once. AP50: average precision, a box being right from an overlap of one half on. "
    "Two more controls: “names exchanged” scores each name with the text of another, and “random towers” are heads on "
    "a tower that has learned nothing ({control:,} pictures): whatever those find of novel shapes is not from "
    "captions."
)

GROUNDING_TEXT = (
    "Zero-shot: the detector's ten best boxes are cut out, encoded, and ranked by the masked cosine with the phrase; "
    "words such as “left of” are read by rules. The trained head reads picture and phrase together and gives boxes of "
    "its own, also none or several. All rows are of the same {sentences:,} sentences that mean one object. Chance is "
    "high, because most of the ten boxes lie on one of few objects."
)

OWN_ENCODER = (
    (
        "Does your encoder know regions? The probe of section 4 on COCO's boxes, for any OpenCLIP model or checkpoint:",
        "smartclip-det probe --open-clip ViT-B-16 --weights weights.safetensors \\\n"
        "    --ann instances_val2017.json --images val2017 --mask-modes off",
    ),
    (
        "Give it masks: alignment with long captions, from your CLIP weights. Then see what they keep.",
        "smartclip-det train configs/smartclip_align/smartclip-b16_1024-3e_sharegpt4v.py \\\n"
        "    --cfg-options towers.checkpoint=weights.pt\n"
        "smartclip-det study masks --encoder work_dirs/smartclip-b16_1024-3e_sharegpt4v/epoch_3.pth --texts coco_80",
    ),
    (
        "Train heads for detection on it, and always test them with the controls of section 5:",
        "smartclip-det train configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py \\\n"
        "    --cfg-options towers.checkpoint=weights.pt\n"
        "smartclip-det test configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py epoch_3.pth \\\n"
        "    --out shuffled.json --cfg-options towers.checkpoint=weights.pt model.policy.mask_mode=shuffled\n"
        "smartclip-det evaluate ov-coco --ann instances_val2017.json --compare shuffled.json hard.json",
    ),
    (
        "Or use the towers without any heads: rank any detector's boxes by phrases.",
        "smartclip-det ground refs.jsonl --images train2014 --encoder weights.pt --proposals detections.json "
        "--views crop",
    ),
)
