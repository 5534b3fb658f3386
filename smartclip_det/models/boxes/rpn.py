"""Boxes from the RPN of torchvision's Faster R-CNN: class-agnostic, and without MMDetection.

The weights were trained on COCO boxes; the second stage, which classifies them, is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.models.boxes.base import Photograph, ScoredBoxes
from smartclip_det.utils.images import pixels
from smartclip_det.utils.notes import note
from smartclip_det.utils.safe_load import safe_torch_load, safe_url_load

DEFAULT_MODEL = "fasterrcnn_resnet50_fpn_v2"


def model_names() -> list[str]:
    """Names of the torchvision models with an RPN."""
    return [n for n in list_models() if n.startswith("fasterrcnn_")]


class TorchvisionBoxes:
    """Top proposals of torchvision's Faster R-CNN, with their objectness.

    Args:
        model: one of :func:`model_names`.
        weights: ``DEFAULT`` or another of torchvision's weight names (downloaded once by torchvision), a weights
            file, or None for random weights (for tests only).
        max_boxes: maximum number of boxes per image.
        nms_iou: IoU above which the lower-scored box is suppressed.
        size: shorter side of the model input in pixels; default: the model's own.
        seed: seed of random weights.

    Raises:
        UserError: for unknown names, a missing or mismatched file, or weights that cannot be downloaded.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        weights: str | Path | None = "DEFAULT",
        max_boxes: int = 300,
        nms_iou: float = 0.7,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.name = check_choice("model", model, model_names())
        options: dict[str, Any] = {"rpn_post_nms_top_n_test": max_boxes, "rpn_nms_thresh": nms_iou}
        options |= {} if size is None else {"min_size": size, "max_size": 2 * size}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = get_model(model, weights=None, weights_backbone=None, **options).eval()
        self.weights = "random" if weights is None else str(weights)
        if weights is not None:
            self._load(str(weights))
        # The second stage classifies boxes and is not needed.
        self.model.roi_heads = nn.Identity()
        self.max_boxes, self.nms_iou, self.size = max_boxes, nms_iou, size
        self.model.requires_grad_(False)

    def _load(self, weights: str) -> None:
        state = safe_torch_load(weights) if Path(weights).is_file() else _downloaded(self.name, weights)
        try:
            self.model.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            first = str(error).strip().split("\n")[0]
            raise UserError(f"{weights} has no weights for torchvision's {self.name} ({first:.200}).") from error

    def facts(self) -> dict[str, Any]:
        """Model, weights and limits."""
        return {
            "source": "torchvision",
            "model": self.name,
            "weights": Path(self.weights).name,
            "max_boxes": self.max_boxes,
            "nms_iou": self.nms_iou,
            "size": self.size,
        }

    def to(self, device: torch.device) -> TorchvisionBoxes:
        """Move the model."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Photograph]) -> list[ScoredBoxes]:
        """Boxes of each image, best first, on the model's device.

        Images are processed one by one: a batch is padded, which would make boxes depend on the other images.
        """
        return [self._one(p) for p in pictures]

    def _one(self, picture: Photograph) -> ScoredBoxes:
        device = next(self.model.parameters()).device
        image = pixels(picture.image).to(device).float() / 255
        inputs, _ = self.model.transform([image])
        with torch.autocast(device.type, enabled=False):
            boxes, scores = proposals(self.model, inputs)
        height, width = inputs.image_sizes[0]
        scale = boxes.new_tensor([picture.image.width / width, picture.image.height / height]).repeat(2)
        return ScoredBoxes(boxes * scale, scores).best(self.max_boxes)


def proposals(model: FasterRCNN, inputs: ImageList) -> tuple[Tensor, Tensor]:
    """Boxes ``[R, 4]`` in pixels of the single input, and objectness ``[R]``, which torchvision's forward drops."""
    rpn, features = model.rpn, list(model.backbone(inputs.tensors).values())
    logits, deltas = rpn.head(features)
    anchors = rpn.anchor_generator(inputs, features)
    counts = [level[0].numel() for level in logits]
    logits, deltas = concat_box_prediction_layers(logits, deltas)
    boxes = rpn.box_coder.decode(deltas, anchors).view(1, -1, 4)
    filtered, scores = rpn.filter_proposals(boxes, logits, inputs.image_sizes, counts)
    return filtered[0], scores[0]


def _downloaded(model: str, weights: str) -> dict[str, Tensor]:
    """Weights from torchvision's URL, cached by torchvision."""
    known = get_model_weights(model)
    check_choice("weights", weights, ["DEFAULT", *known.__members__])
    entry = known[weights]
    name, folder = entry.url.rsplit("/", 1)[1], Path(torch.hub.get_dir(), "checkpoints")
    if not (folder / name).is_file():
        note(
            f"boxes: downloading torchvision's {model} once, weights {entry.name} trained on COCO "
            f"({entry.meta.get('_file_size', 0):.0f} MB), from {entry.url} to {folder}.",
            error=True,
        )
    try:
        state: dict[str, Tensor] = safe_url_load(entry.url, map_location="cpu", check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"The weights of torchvision's {model} could not be downloaded from {entry.url} ({error}). Put that file "
            f"into {folder}, or pass its path: boxes='torchvision:{model}:FILE'."
        ) from error
    return state
