"""Base classes of the families: encoded images, texts to banks, and results from regions scored with a bank.

Shape letters: R regions, C classes, K texts, D joint embedding, h w grid cells, H W image pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smartclip_det.apis.detections import Detections
from smartclip_det.apis.explanation import Explanation
from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.boxes import Photograph
from smartclip_det.models.grounding.parsing import Entity
from smartclip_det.models.grounding.zero_shot import rank_by_tree
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.utils.devices import full_precision


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image; immutable.

    Attributes:
        picture: the image.
        boxes: ``[R, 4]`` xyxy boxes in original pixels.
        objectness: ``[R]`` in [0, 1]; 1 for families without objectness.
        vectors: ``[R, D]`` region vectors of the box head, or of the first view.
        dense_vectors: ``[R, D]`` pooled from the dense map, or of the second view; None if there is only one.
        dense: ``[D, h, w]`` dense map; may cover the whole padded input.
        image_cells: (rows, columns) of the grid that cover the image, without padding.
        shift: ``[R]`` learned shift of each region's cosines; None if not learned.
        scale: ``[R]`` learned raw scale of each region's cosines; None if not learned.
        whole: ``[P, D]`` image vectors for presence scoring; None if the policy does not use it.
    """

    picture: Photograph
    boxes: Tensor
    objectness: Tensor
    vectors: Tensor
    dense_vectors: Tensor | None
    dense: Tensor
    image_cells: tuple[int, int]
    shift: Tensor | None = field(default=None, repr=False)
    scale: Tensor | None = field(default=None, repr=False)
    whole: Tensor | None = field(default=None, repr=False)


class Family(ABC):
    """How a predictor encodes images and answers queries; :class:`Predictor` validates inputs and keeps the image."""

    #: Name used in messages and stamps.
    kind = ""
    towers: Any
    cache_dir: str | Path | None = None
    bank: TextBank | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the model."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Describe the model and its settings, for stamps."""

    @abstractmethod
    def encode(self, pictures: Sequence[Photograph], boxes: Sequence[Tensor | None], batch_size: int) -> list[Any]:
        """Encode images.

        Args:
            pictures: B images.
            boxes: per image, ``[R, 4]`` xyxy boxes to use unchanged, or None for the family's own.
            batch_size: maximum number of images per forward pass.
        """

    @abstractmethod
    def detect(self, image: Any, bank: TextBank, threshold: float, limit: int | None) -> Detections:
        """Detect the classes of a bank."""

    @abstractmethod
    def ground(
        self, image: Any, trees: Mapping[str, Entity], reading: str, top_k: int, threshold: float
    ) -> dict[str, Detections]:
        """Return the boxes of each expression."""

    @abstractmethod
    def explain(self, image: Any, text: str) -> Explanation:
        """Explain where a text matches."""

    @abstractmethod
    def embed(self, image: Any) -> tuple[Tensor, Tensor]:
        """Return boxes ``[R, 4]`` of an encoded image and their vectors ``[R, D]``, which are compared with texts."""

    def segment(self, image: Any, expression: str, boxes: Tensor | None) -> np.ndarray:
        """Return masks ``[N, H, W]`` bool of boxes ``[N, 4]``; ``[1, H, W]`` of an expression if ``boxes`` is None."""
        raise UserError(
            f"This predictor ({self.kind}) has no mask head. Use a grounding head trained with "
            "model.head.mask_branch=True, or a two-stage detector with a mask_head."
        )

    def check_bank(self, bank: TextBank) -> TextBank:
        """Move a bank to the family's device; banks of other towers are rejected.

        Raises:
            UserError: if the bank was encoded by other towers; names both hashes.
        """
        theirs, ours = bank.provenance.get("checkpoint_hash"), self.towers.checkpoint_hash
        if theirs and theirs != ours:
            raise UserError(
                f"The bank was encoded by towers {theirs}, but this predictor has towers {ours}; their embedding "
                "spaces differ. Encode the vocabulary again with set_vocabulary([...])."
            )
        return bank.to(self.device)

    def set_bank(self, bank: TextBank) -> None:
        """Set the current vocabulary to a checked bank."""
        self.bank = bank

    def texts(self, names: Sequence[str], templates: str | Sequence[str], order: str = "average_state") -> TextBank:
        """Encode names into a bank on the family's device; all are marked as unseen."""
        with full_precision(self.device):
            bank = build_bank(
                self.towers, names, templates=templates, template_order=order, cache_dir=self.cache_dir
            ).with_seen([])
        return bank.to(self.device)


class RegionFamily(Family):
    """Families that score regions with a bank; expressions are grounded zero-shot."""

    policy: ScoringPolicy
    #: IoU threshold of per-class NMS.
    nms_iou: float

    @abstractmethod
    def select(
        self, image: EncodedImage, bank: TextBank, threshold: float, limit: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return box rows, classes and scores of the detections, best first."""

    @abstractmethod
    def scores(self, image: EncodedImage, bank: TextBank) -> Tensor:
        """Return ``[R, K]`` scores of every box for every text, independent of the other texts."""

    def detect(self, image: EncodedImage, bank: TextBank, threshold: float, limit: int | None) -> Detections:
        """Detect the classes of a bank."""
        if not len(image.boxes) or not len(bank):
            return Detections.none(bank.names, image.picture.given)
        with full_precision(self.device):
            rows, classes, values = self.select(image, bank, threshold, limit)
        return answer(image.boxes[rows], values, classes, bank.names, image.picture)

    def ground(
        self, image: EncodedImage, trees: Mapping[str, Entity], reading: str, top_k: int, threshold: float
    ) -> dict[str, Detections]:
        """Ground expressions zero-shot: regions ranked by masked cosine and the parse tree."""
        parts = {t: [*([t] if reading == "both" else []), *tree.texts()] for t, tree in trees.items()}
        if not len(image.boxes):
            return {t: Detections.none([t], image.picture.given) for t in trees}
        bank = self.texts(list(dict.fromkeys(p for ps in parts.values() for p in ps)), "none", self.order)
        # Trees are small and full of branches: they are ranked on the host, after one copy for all expressions.
        with full_precision(self.device):
            scores, boxes = self.scores(image, bank).cpu(), image.boxes.cpu()
        column = {n: k for k, n in enumerate(bank.names)}
        answers = {}
        for t, tree in trees.items():
            rows, values = rank_by_tree(
                tree,
                {p: scores[:, column[p]] for p in parts[t]},
                boxes,
                whole=t if reading == "both" else None,
                iou_threshold=self.ground_iou,
                top_k=top_k,
                threshold=threshold,
            )
            answers[t] = answer(boxes[rows], values, torch.zeros_like(rows), (t,), image.picture)
        return answers

    @property
    def ground_iou(self) -> float:
        """NMS IoU threshold for the boxes of an expression."""
        return self.nms_iou

    @property
    def order(self) -> str:
        """How templates are averaged."""
        return self.policy.template_order

    def explain(self, image: EncodedImage, text: str) -> Explanation:
        """Return the masked cosine of each grid cell with a text, and the text's mask."""
        bank, mode = self.texts([text], "none", self.order), self.policy.dense_mode
        d, h, w = image.dense.shape
        with full_precision(self.device):
            cosine = bank.cosine(image.dense.reshape(d, h * w).t(), self.policy, mask_mode=mode)
        rows, columns = image.image_cells
        mask = bank.resolved_masks(mode)
        mask_values = torch.ones(d) if mask is None else mask[0]
        return Explanation(cosine.view(h, w)[:rows, :columns].cpu().numpy(), mask_values.cpu().numpy(), text)

    def embed(self, image: EncodedImage) -> tuple[Tensor, Tensor]:
        """Return boxes and vectors; with two vectors per region, the mean of their directions."""
        if image.dense_vectors is None:
            return image.boxes, image.vectors
        both = [torch.nn.functional.normalize(v, dim=1) for v in (image.vectors, image.dense_vectors)]
        return image.boxes, torch.stack(both).mean(dim=0)


def answer(boxes: Tensor, scores: Tensor, labels: Tensor, names: Sequence[str], picture: Photograph) -> Detections:
    """Build detections of an image from tensors: boxes ``[N, 4]``, scores ``[N]`` and labels ``[N]``."""
    arrays = (boxes.float().cpu().numpy(), scores.float().cpu().numpy(), labels.cpu().numpy())
    return Detections(*arrays, tuple(names), picture.given)


def in_batches(keys: Sequence[Any], batch_size: int) -> Iterable[list[int]]:
    """Yield batches of indices with equal keys, at most ``batch_size`` each."""
    same: dict[Any, list[int]] = {}
    for n, key in enumerate(keys):
        same.setdefault(key, []).append(n)
    for mine in same.values():
        yield from (mine[start : start + batch_size] for start in range(0, len(mine), batch_size))
