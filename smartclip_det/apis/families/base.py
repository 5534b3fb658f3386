"""What families share: the encoded image, texts to banks, and answers by regions that are scored with a bank.

Shape letters: R regions, C classes, K texts, D joint embedding, h w grid cells, H W pixels of the picture.
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
    """What an image is encoded to, once; nothing changes it.

    Attributes:
        picture: the image itself.
        boxes: ``[R, 4]`` xyxy boxes in original pixels.
        objectness: ``[R]`` in [0, 1]; 1 where a family has none.
        vectors: ``[R, D]`` that texts are compared with first: of the box head, or of the first view.
        dense_vectors: ``[R, D]`` pooled from the dense map, or of the second view; None where a family has one only.
        dense: ``[D, h, w]`` map of the grid's cells, which may be the whole padded input's.
        image_cells: (rows, columns) of the grid that show the image and not padding.
        shift: ``[R]`` learned shift of each region's cosines; None where there is none.
        scale: ``[R]`` learned raw factor on them.
        whole: ``[P, D]`` vectors of the picture, for presence; None where the policy has none.
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
    """How a predictor encodes images and answers; :class:`Predictor` checks what it is given and holds the image."""

    #: In words, for messages and stamps.
    kind = ""
    towers: Any
    cache_dir: str | Path | None = None
    bank: TextBank | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """How answers are made, for their stamp."""

    @abstractmethod
    def encode(self, pictures: Sequence[Photograph], boxes: Sequence[Tensor | None], batch_size: int) -> list[Any]:
        """Encode pictures.

        Args:
            pictures: B of them.
            boxes: for each ``[R, 4]`` xyxy that are used as they are, or None for the family's own.
            batch_size: pictures in one forward pass at most.
        """

    @abstractmethod
    def detect(self, image: Any, bank: TextBank, threshold: float, limit: int | None) -> Detections:
        """Boxes of each class of a bank."""

    @abstractmethod
    def ground(
        self, image: Any, trees: Mapping[str, Entity], reading: str, top_k: int, threshold: float
    ) -> dict[str, Detections]:
        """The boxes of each expression."""

    @abstractmethod
    def explain(self, image: Any, text: str) -> Explanation:
        """Where a text matches."""

    @abstractmethod
    def embed(self, image: Any) -> tuple[Tensor, Tensor]:
        """``[R, 4]`` boxes of an encoded image, and their ``[R, D]`` vectors: what rows of banks are compared with."""

    def segment(self, image: Any, expression: str, boxes: Tensor | None) -> np.ndarray:
        """``[N, H, W]`` bool of boxes ``[N, 4]``, or ``[1, H, W]`` of an expression where ``boxes`` is None."""
        raise UserError(
            f"This predictor ({self.kind}) has no mask head. A grounding head trained with model.head.mask_branch=True "
            "has one, and so has a two-stage detector with a mask_head."
        )

    def check_bank(self, bank: TextBank) -> TextBank:
        """The bank on the family's device; one of other towers is refused.

        Raises:
            UserError: telling both hashes.
        """
        made_by, mine = bank.provenance.get("checkpoint_hash"), self.towers.checkpoint_hash
        if made_by and made_by != mine:
            raise UserError(
                f"The bank was encoded by towers {made_by}, this predictor has towers {mine}: texts and images would "
                "not share a space. Encode the vocabulary with set_vocabulary([...])."
            )
        return bank.to(self.device)

    def set_bank(self, bank: TextBank) -> None:
        """Put a checked bank in force."""
        self.bank = bank

    def texts(self, names: Sequence[str], templates: str | Sequence[str], order: str = "average_state") -> TextBank:
        """The bank of names, none of them seen, on the family's device."""
        with full_precision(self.device):
            bank = build_bank(
                self.towers, names, templates=templates, template_order=order, cache_dir=self.cache_dir
            ).with_seen([])
        return bank.to(self.device)


class RegionFamily(Family):
    """Families that score regions with a bank; expressions are reasoned about without training."""

    policy: ScoringPolicy
    #: Overlap over which the weaker box of a class goes.
    nms_iou: float

    @abstractmethod
    def select(
        self, image: EncodedImage, bank: TextBank, threshold: float, limit: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of boxes, classes and scores of the detections, best first."""

    @abstractmethod
    def scores(self, image: EncodedImage, bank: TextBank) -> Tensor:
        """``[R, K]`` score of every box for every text by itself."""

    def detect(self, image: EncodedImage, bank: TextBank, threshold: float, limit: int | None) -> Detections:
        """Boxes of each class of a bank."""
        if not len(image.boxes) or not len(bank):
            return Detections.none(bank.names, image.picture.given)
        with full_precision(self.device):
            rows, classes, values = self.select(image, bank, threshold, limit)
        return answer(image.boxes[rows], values, classes, bank.names, image.picture)

    def ground(
        self, image: EncodedImage, trees: Mapping[str, Entity], reading: str, top_k: int, threshold: float
    ) -> dict[str, Detections]:
        """The boxes that expressions fit best: their regions, ranked by masked cosine and the tree."""
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
        """Overlap over which the weaker answer of an expression goes."""
        return self.nms_iou

    @property
    def order(self) -> str:
        """How templates are joined."""
        return self.policy.template_order

    def explain(self, image: EncodedImage, text: str) -> Explanation:
        """Masked cosine of each grid cell with a text, and the text's mask."""
        bank, mode = self.texts([text], "none", self.order), self.policy.dense_mode
        d, h, w = image.dense.shape
        with full_precision(self.device):
            cosine = bank.cosine(image.dense.reshape(d, h * w).t(), self.policy, mask_mode=mode)
        rows, columns = image.image_cells
        mask = bank.resolved_masks(mode)
        kept = torch.ones(d) if mask is None else mask[0]
        return Explanation(cosine.view(h, w)[:rows, :columns].cpu().numpy(), kept.cpu().numpy(), text)

    def embed(self, image: EncodedImage) -> tuple[Tensor, Tensor]:
        """Boxes and vectors; where a family compares two vectors of a region, the mean of both directions."""
        if image.dense_vectors is None:
            return image.boxes, image.vectors
        both = [torch.nn.functional.normalize(v, dim=1) for v in (image.vectors, image.dense_vectors)]
        return image.boxes, torch.stack(both).mean(dim=0)


def answer(boxes: Tensor, scores: Tensor, labels: Tensor, names: Sequence[str], picture: Photograph) -> Detections:
    """Detections of a picture from ``[N, 4]``, ``[N]`` and ``[N]`` tensors."""
    arrays = (boxes.float().cpu().numpy(), scores.float().cpu().numpy(), labels.cpu().numpy())
    return Detections(*arrays, tuple(names), picture.given)


def in_batches(keys: Sequence[Any], batch_size: int) -> Iterable[list[int]]:
    """Indices of equal keys together, at most ``batch_size`` of them."""
    same: dict[Any, list[int]] = {}
    for n, key in enumerate(keys):
        same.setdefault(key, []).append(n)
    for mine in same.values():
        yield from (mine[start : start + batch_size] for start in range(0, len(mine), batch_size))
