"""The training-free family: boxes of any source, ranked by the towers' region vectors. Does not need MMDetection.

Shape letters: R regions, C classes, D joint embedding, h w grid cells, S side of the square dense input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from smartclip_det.apis.families.base import EncodedImage, RegionFamily
from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.core.words import REGION_VIEWS
from smartclip_det.models.boxes import BoxSource, Photograph, ScoredBoxes
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.rescoring import class_scores
from smartclip_det.models.selection import select_from_parts
from smartclip_det.utils.devices import autocast, check_precision, full_precision
from smartclip_det.utils.images import square_scale

#: Default side of the dense input, as a multiple of the towers' input size, by kind of image tower; 1 for a fixed size.
DENSE_FACTORS = {"vit": 3, "local": 1}
#: Default temperature, as a fraction of the towers' learned scale ``exp(logit_scale)``.
SCALE_FRACTION = 0.5
#: Classes scored at once, to bound memory.
CHUNK = 4096
_VIEWS = {"dense": ("dense",), "crop": ("crop",), "both": ("dense", "crop")}


@dataclass(frozen=True)
class FreeOptions:
    """Options of the training-free family.

    Together with :func:`free_policy` these are the defaults of the predictor. They were chosen on the toy world with
    ``smartclip-det study predictor``; ``docs/ideas/scores.md`` has the figures. Not measured, and taken from common
    practice: the dense input of a ViT, three times its input size, as objects in photographs are small. A local tower
    keeps its own size, because its cells see a fixed number of pixels, and so does an encoder with ``fixed_size``.

    Attributes:
        regions: ``dense`` (one tower pass per image, pooled in each box), ``crop`` (one pass per box) or
            ``both`` (the mean of their cosines).
        objectness_power: exponent of a box's objectness in its class scores; 0: not used.
        nms_iou: IoU threshold of per-class NMS.
        max_boxes: boxes per image that are scored, best of the source.
        max_detections: maximum detections per image.
        dense_size: side of the square dense input in pixels; 0: :data:`DENSE_FACTORS` times the towers' input size.
        dense_mode: mode of the last block for the dense map.
        crop_context: side of the square crop relative to the longer box side.
    """

    regions: str = "dense"
    objectness_power: float = 0.5
    nms_iou: float = 0.5
    max_boxes: int = 300
    max_detections: int = 100
    dense_size: int = 0
    dense_mode: str = "value"
    crop_context: float = 1.2

    def __post_init__(self) -> None:
        check_choice("regions", self.regions, REGION_VIEWS)
        if not 0 <= self.objectness_power <= 10 or not 0 <= self.nms_iou <= 1:
            raise UserError(
                "objectness_power must be in [0, 10] and nms_iou in [0, 1]; got "
                f"{self.objectness_power} and {self.nms_iou}."
            )
        if min(self.max_boxes, self.max_detections) < 1 or self.dense_size < 0:
            raise UserError(
                "max_boxes and max_detections must be at least 1, and dense_size at least 0; got "
                f"{self.max_boxes}, {self.max_detections} and {self.dense_size}."
            )


def free_policy(towers: Any, masks: str = "hard") -> ScoringPolicy:
    """Return the default policy: a sigmoid against the text "background", independent of the other texts.

    The temperature is :data:`SCALE_FRACTION` of the towers' learned scale (50 for CLIP's 100). With a larger one the
    sigmoid is near 1 for several names of a box, and objectness decides the ranking. Cells of the dense map keep their
    norm where it is a learned weight; those of other ViTs are normalised, as in F-ViT (CLIPSelf, arXiv 2310.01403).

    Args:
        towers: any :class:`Encoder`.
        masks: ``hard``, ``off``, or another mask mode.
    """
    return ScoringPolicy(
        mask_mode=masks,
        activation="sigmoid",
        dense_temperature=SCALE_FRACTION * float(towers.logit_scale.detach().exp()),
        sigmoid_reference="background",
        background="text",
        dense_norm="none" if _weighs_cells(towers) else "pixel",
    )


def _weighs_cells(towers: Any) -> bool:
    """Whether the norm of a dense-map cell is a learned weight."""
    return getattr(towers.config, "vision", "vit") == "local" or getattr(towers.config, "saliency", False)


def _dense_side(towers: Any) -> int:
    """Default side of the dense input in pixels."""
    fixed = getattr(towers.config, "fixed_size", False)
    factor = 1 if fixed else DENSE_FACTORS[getattr(towers.config, "vision", "vit")]
    return factor * int(towers.config.image_size)


class TrainingFree(RegionFamily):
    """Towers and a box source."""

    kind = "training-free"

    def __init__(
        self,
        towers: Any,
        boxes: BoxSource | None,
        options: FreeOptions | None = None,
        *,
        policy: ScoringPolicy | None = None,
        cache_dir: str | Path | None = None,
        precision: str = "fp32",
    ) -> None:
        """Initialise the family.

        Args:
            towers: any :class:`Encoder`.
            boxes: box source; None if boxes are passed with each image.
            options: options of the family.
            policy: scoring policy; as nothing is trained, ``dense_temperature`` and ``dense_mode`` apply.
            cache_dir: cache folder for encoded texts; None: no cache.
            precision: precision of the image tower; the rest runs in fp32.
        """
        self.towers, self.source, self.options = towers.eval(), boxes, options or FreeOptions()
        self.policy, self.cache_dir = policy or free_policy(towers), cache_dir
        self.precision = check_precision(precision)
        patch, side = towers.config.patch_size, self.options.dense_size or _dense_side(towers)
        self.regions = RegionEncoder(
            towers,
            dense_size=-(-side // patch) * patch,
            dense_mode=self.options.dense_mode,
            crop_context=self.options.crop_context,
        )
        self.nms_iou = self.options.nms_iou
        if boxes is not None:
            boxes.to(self.device)

    @property
    def device(self) -> torch.device:
        """Device of the towers."""
        return self.towers.logit_scale.device

    def facts(self) -> dict[str, Any]:
        """Describe towers, policy, box source and options."""
        source = {"source": "given"} if self.source is None else self.source.facts()
        return {
            "policy": self.policy.to_dict(),
            "towers": self.towers.checkpoint_hash,
            "precision": self.precision,
            "boxes": source,
            **asdict(self.options),
            "dense_size": self.regions.dense_size,
        }

    def encode(
        self, pictures: Sequence[Photograph], boxes: Sequence[Tensor | None], batch_size: int
    ) -> list[EncodedImage]:
        """Get boxes from the source, then dense maps, up to ``batch_size`` images per pass."""
        boxes_found = self.find_boxes(pictures, boxes)
        out: list[EncodedImage] = []
        for start in range(0, len(pictures), batch_size):
            part = slice(start, start + batch_size)
            maps = self.maps([p.image for p in pictures[part]])
            out += [self.pooled(p, b, m) for p, b, m in zip(pictures[part], boxes_found[part], maps, strict=True)]
        return out

    def find_boxes(self, pictures: Sequence[Photograph], boxes: Sequence[Tensor | None]) -> list[ScoredBoxes]:
        """Boxes: those that were given, and the source's best of the other pictures."""
        wanted = [p for p, b in zip(pictures, boxes, strict=True) if b is None]
        if wanted and self.source is None:
            raise UserError(
                "This predictor has no box source. Pass boxes with each image, set_image(image, boxes=[[x1, y1, "
                "x2, y2], ...]), or build it with boxes='torchvision'."
            )
        predicted = iter(self.source(wanted) if wanted and self.source is not None else ())
        return [
            next(predicted).best(self.options.max_boxes)
            if b is None
            else ScoredBoxes(b.to(self.device), torch.ones(len(b), device=self.device))
            for b in boxes
        ]

    def maps(self, images: Sequence[Image.Image]) -> Tensor:
        """Return ``[B, D, h, w]`` dense maps."""
        with autocast(self.device, self.precision):
            return self.regions.dense_maps(images).float()

    def pooled(self, picture: Photograph, found: ScoredBoxes, dense: Tensor) -> EncodedImage:
        """Region vectors of one picture, from its dense map ``[D, h, w]``, its crops, or both."""
        image, views = picture.image, _VIEWS[self.options.regions]
        boxes, vectors = found.boxes.to(self.device), []
        for view in views:
            if view == "dense":
                cells = functional.normalize(dense, dim=0) if self.policy.dense_norm == "pixel" else dense
                with full_precision(self.device):
                    vectors.append(self.regions.pool(cells[None], [image.size], [boxes]))
            else:
                with autocast(self.device, self.precision):
                    vectors.append(self.regions.vectors(image, boxes.tolist(), view).float().to(self.device))
        side, patch = self.regions.dense_size, self.towers.config.patch_size
        across, down = square_scale(image.size, side, self.regions.fit)
        shown = (-(-image.height * down // patch), -(-image.width * across // patch))
        cells_shown = (min(int(shown[0]), dense.shape[1]), min(int(shown[1]), dense.shape[2]))
        second = vectors[1] if len(vectors) > 1 else None
        return EncodedImage(
            picture,
            boxes,
            found.scores.to(self.device),
            vectors[0],
            second,
            dense,
            cells_shown,
            whole=self._whole(image, dense),
        )

    def _whole(self, image: Image.Image, dense: Tensor) -> Tensor | None:
        """Return the image vectors that presence scoring needs, or None if the policy does not use it."""
        if not self.policy.presence:
            return None
        if self.policy.presence_source == "cells":
            return self.regions.shown_cells(dense, image.size)
        with autocast(self.device, self.precision):
            return self.regions.picture(image, "pooled").float().to(self.device)

    def _views(self, image: EncodedImage) -> list[Tensor]:
        return [v for v in (image.vectors, image.dense_vectors) if v is not None]

    def _weighted(self, image: EncodedImage, bank: TextBank) -> Tensor:
        weight = image.objectness.clamp(min=0).pow(self.options.objectness_power)
        return class_scores(self._views(image), bank, self.policy, image.whole) * weight.unsqueeze(1)

    def select(
        self, image: EncodedImage, bank: TextBank, threshold: float, limit: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Select the best (box, class) pairs after per-class NMS."""
        # Softmax needs all classes at once; sigmoid scores can be computed in chunks.
        pieces = self.policy.activation == "sigmoid" and len(bank) > CHUNK
        parts = bank.parts(CHUNK) if pieces else [bank]
        return select_from_parts(
            image.boxes,
            lambda: (self._weighted(image, part) for part in parts),
            score_threshold=threshold - 1e-9,
            iou_threshold=self.nms_iou,
            max_detections=self.options.max_detections if limit is None else limit,
        )

    def scores(self, image: EncodedImage, bank: TextBank) -> Tensor:
        """Return ``[R, K]`` scores of every box for every text, independent of the other texts."""
        independent = self.policy.activation == "sigmoid"
        banks = [bank] if independent else [bank.select([n]) for n in bank.names]
        return torch.cat([self._weighted(image, b) for b in banks], dim=1)
