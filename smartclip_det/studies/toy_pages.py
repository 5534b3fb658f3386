"""Fixed texts of the toy report."""

from __future__ import annotations

IDEA_TEXT = (
    "CLIP compares a whole image with a whole caption: both become vectors, and their cosine measures how well they "
    "match. But a caption usually describes only part of its image, and everything else in the image lowers the "
    "cosine.",
    "SmartCLIP lets each text select, with a binary mask over the embedding dimensions, which part of the image vector "
    "it is compared with: the cosine is computed on the dimensions that the mask keeps. The mask is computed from the "
    "text alone, so one image vector serves any number of texts. This page shows the results on generated scenes: "
    "alignment with captions, then detection of shapes without any training boxes, then grounding of phrases that "
    "refer to one object.",
)

ALIGNMENT_TERMS = {
    "masks hard": "The method: each text is compared on the dimensions that its own mask keeps.",
    "masks off": "Plain cosine on all dimensions. With SmartCLIP's weights, this shows how much these weights "
    "depend on "
    "masks; whether masks are worth having is shown by the comparison with CLIP, which was trained without them. "
    "(“Soft”, with mask probabilities instead of zeros and ones, is also available in the library but not shown here.)",
}
CONTROL_TERMS = {
    "another text's mask": "A control: the right text with the mask of another text. If this works equally well, masks "
    "help for a reason other than which dimensions the text selects.",
    "random masks": "A control: as many dimensions as the text's mask keeps, chosen at random.",
}

#: Measured once, outside the toy run, so the numbers are the same on every page.
BINDING = (
    "What limits colour + shape for both models is binding, i.e. which colour belongs to which shape. (Last column: "
    "how often a matching image scores above one that shows both words on different objects; 0.5 is chance.) When the "
    "same losses are trained on symbolic descriptions of the scenes instead of images, so that perception is perfect, "
    "matching images are separated from those with the shape alone with an area under the ROC curve of 0.97 (CLIP "
    "0.975, masked 0.974) and from those with the colour alone with 1.00 (0.999, 0.998), but from those with both on "
    "different objects with only 0.75, with or without masks. Masks select dimensions of one vector; they do not say "
    "which object a dimension belongs to."
)

PROBE_TEXT = (
    "Annotated boxes of the validation images, classified among all 18 shapes by the towers alone. “Dense” averages "
    "the patch vectors in the box, from one pass over the whole image, which is what the detector uses; “crop” encodes "
    "the box as an image of its own. A detector on frozen towers can only recognise novel shapes as far as the dense "
    "columns allow."
)

DETECTION_TEXT = (
    "Detector heads are trained on the frozen SmartCLIP image tower with boxes of the 12 base shapes ({images:,} "
    "images). The test vocabulary has all 18 shapes. AP50 is average precision at IoU 0.5. Two more controls: “names "
    "permuted” scores each class with the text of another, and “random towers” are heads trained on a tower with "
    "random weights ({control:,} images): novel shapes that these detect were not learned from captions."
)

GROUNDING_TEXT = (
    "Zero-shot: the patch vectors in each of the detector's ten best boxes are averaged and ranked by masked cosine "
    "with the phrase; spatial words such as “left of” are handled by rules. The trained head reads image and phrase "
    "together and predicts its own boxes, which may be none or several. All rows use the same {sentences:,} "
    "single-target sentences. Chance is high because most of the ten boxes cover one of few objects."
)

OWN_ENCODER = (
    (
        "How well does your encoder recognise regions? The probe of section 4 on COCO boxes, for any OpenCLIP "
        "model or checkpoint:",
        "smartclip-det probe --open-clip ViT-B-16 --weights weights.safetensors \\\n"
        "    --ann instances_val2017.json --images val2017 --mask-modes off",
    ),
    (
        "Add masks by aligning your CLIP weights with long captions, then inspect the masks:",
        "smartclip-det train configs/smartclip_align/smartclip-b16_1024-3e_sharegpt4v.py \\\n"
        "    --cfg-options towers.checkpoint=weights.pt\n"
        "smartclip-det study masks --encoder work_dirs/smartclip-b16_1024-3e_sharegpt4v/epoch_3.pth \\\n"
        "    --vocabulary coco_80",
    ),
    (
        "Train detector heads on it, and always test them with the controls of section 5:",
        "smartclip-det train configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py \\\n"
        "    --cfg-options towers.checkpoint=weights.pt\n"
        "smartclip-det test configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py epoch_3.pth \\\n"
        "    --out shuffled.json --cfg-options towers.checkpoint=weights.pt model.policy.mask_mode=shuffled\n"
        "smartclip-det evaluate ov-coco --ann instances_val2017.json --compare shuffled.json hard.json",
    ),
    (
        "Or use the towers without heads, to rank the boxes of any detector:",
        "smartclip-det ground refs.jsonl --images train2014 --encoder weights.pt --proposals detections.json "
        "--views crop",
    ),
)
