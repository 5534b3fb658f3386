"""Class lists of benchmarks, ordered by COCO category id. The OV-COCO split is that of OVR-CNN (arXiv 2011.10678)."""

from __future__ import annotations

from smartclip_det.core.errors import UserError, check_choice

#: The 80 COCO classes by their original category id.
COCO_CLASSES: dict[int, str] = {
    1: "person",
    2: "bicycle",
    3: "car",
    4: "motorcycle",
    5: "airplane",
    6: "bus",
    7: "train",
    8: "truck",
    9: "boat",
    10: "traffic light",
    11: "fire hydrant",
    13: "stop sign",
    14: "parking meter",
    15: "bench",
    16: "bird",
    17: "cat",
    18: "dog",
    19: "horse",
    20: "sheep",
    21: "cow",
    22: "elephant",
    23: "bear",
    24: "zebra",
    25: "giraffe",
    27: "backpack",
    28: "umbrella",
    31: "handbag",
    32: "tie",
    33: "suitcase",
    34: "frisbee",
    35: "skis",
    36: "snowboard",
    37: "sports ball",
    38: "kite",
    39: "baseball bat",
    40: "baseball glove",
    41: "skateboard",
    42: "surfboard",
    43: "tennis racket",
    44: "bottle",
    46: "wine glass",
    47: "cup",
    48: "fork",
    49: "knife",
    50: "spoon",
    51: "bowl",
    52: "banana",
    53: "apple",
    54: "sandwich",
    55: "orange",
    56: "broccoli",
    57: "carrot",
    58: "hot dog",
    59: "pizza",
    60: "donut",
    61: "cake",
    62: "chair",
    63: "couch",
    64: "potted plant",
    65: "bed",
    67: "dining table",
    70: "toilet",
    72: "tv",
    73: "laptop",
    74: "mouse",
    75: "remote",
    76: "keyboard",
    77: "cell phone",
    78: "microwave",
    79: "oven",
    80: "toaster",
    81: "sink",
    82: "refrigerator",
    84: "book",
    85: "clock",
    86: "vase",
    87: "scissors",
    88: "teddy bear",
    89: "hair drier",
    90: "toothbrush",
}
_OV_COCO_NOVEL_IDS = (5, 6, 17, 18, 21, 22, 28, 32, 36, 41, 47, 49, 61, 63, 76, 81, 87)
#: COCO classes that OV-COCO ignores.
_OV_COCO_UNUSED_IDS = (10, 11, 13, 14, 37, 39, 40, 43, 46, 58, 64, 67, 77, 88, 89)

COCO_80 = tuple(COCO_CLASSES.values())
OV_COCO_NOVEL = tuple(COCO_CLASSES[i] for i in _OV_COCO_NOVEL_IDS)
OV_COCO_65 = tuple(n for i, n in COCO_CLASSES.items() if i not in _OV_COCO_UNUSED_IDS)
OV_COCO_BASE = tuple(n for n in OV_COCO_65 if n not in OV_COCO_NOVEL)

VOCABULARIES: dict[str, tuple[str, ...]] = {
    "coco_80": COCO_80,
    "ov_coco_65": OV_COCO_65,
    "ov_coco_base": OV_COCO_BASE,
    "ov_coco_novel": OV_COCO_NOVEL,
}


def vocabulary(name: str) -> tuple[str, ...]:
    """A named class list; an unknown name is an error that lists the closest ones."""
    return VOCABULARIES[check_choice("vocabulary", name, VOCABULARIES)]


def check_split(base: list[str], novel: list[str]) -> None:
    """Raise UserError if the split has an empty or repeated class list, or classes that are both base and novel."""
    twice = sorted({n for part in (base, novel) for n in part if part.count(n) > 1})
    if twice:
        raise UserError(f"The split lists classes twice: {', '.join(twice[:5])}.")
    both = sorted(set(base) & set(novel))
    if both:
        raise UserError(f"These classes are both base and novel: {', '.join(both[:5])}.")
    if not base or not novel:
        raise UserError("A split needs at least one base and one novel class.")
