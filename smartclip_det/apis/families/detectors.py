"""Trained detectors: the two-stage and the one-stage family.

Shape letters: R regions, C classes, D joint embedding, h w grid cells.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from smartclip_det.apis.families.base import EncodedImage, RegionFamily, in_batches
from smartclip_det.core.errors import UserError
from smartclip_det.core.fusion import FUSIONS, owl_logits
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.boxes import Photograph
from smartclip_det.models.selection import select_from_parts
from smartclip_det.utils.devices import autocast, check_precision, full_precision

#: Classes scored at once by the one-stage detector, to bound memory.
CHUNK = 1024


class DetectorFamily(RegionFamily):
    """A detector of MMDetection's registry with its test pipeline and the text tower."""

    def __init__(
        self,
        detector: Any,
        towers: Any,
        pipeline: Any,
        *,
        policy: ScoringPolicy | None = None,
        cache_dir: str | Path | None = None,
        precision: str = "fp32",
    ) -> None:
        """Initialise the family.

        Args:
            detector: with :class:`ActiveBank`.
            towers: text side of the towers that the detector's backbone came from.
            pipeline: MMDetection test pipeline that takes ``img`` arrays.
            policy: scoring policy; default: derived from the detector's policy.
            cache_dir: cache folder for encoded texts; None: no cache.
            precision: precision of image tower and neck; the rest runs in fp32.
        """
        self.detector, self.towers, self.pipeline = detector.eval(), towers.eval(), pipeline
        self.policy = policy or self.default_policy(detector.policy)
        self.cache_dir, self.precision = cache_dir, check_precision(precision)

    @staticmethod
    def default_policy(policy: ScoringPolicy) -> ScoringPolicy:
        """Derive from the detector's policy one whose scores do not depend on the other classes."""
        return policy

    @property
    def device(self) -> torch.device:
        """Device of the detector."""
        return next(self.detector.parameters()).device

    def facts(self) -> dict[str, Any]:
        """Describe policy, towers and precision."""
        return {"policy": self.policy.to_dict(), "towers": self.towers.checkpoint_hash, "precision": self.precision}

    @property
    def bank(self) -> TextBank | None:  # type: ignore[override]
        """The detector's current text bank."""
        return self.detector.text_bank

    def set_bank(self, bank: TextBank) -> None:
        """Set the detector's text bank."""
        self.detector.set_text_bank(bank)

    def encode(
        self, pictures: Sequence[Photograph], boxes: Sequence[Tensor | None], batch_size: int
    ) -> list[EncodedImage]:
        """Encode images; images with the same input shape are batched, so that padding cannot affect results."""
        data = [
            self.pipeline({"img": np.ascontiguousarray(np.asarray(p.image)[..., ::-1]), "img_id": 0}) for p in pictures
        ]
        out: dict[int, EncodedImage] = {}
        for chosen in in_batches([tuple(d["inputs"].shape) for d in data], batch_size):
            batch = self.detector.data_preprocessor(
                {k: [data[n][k] for n in chosen] for k in ("inputs", "data_samples")}, False
            )
            encoded = self._encode([pictures[n] for n in chosen], [boxes[n] for n in chosen], batch)
            out |= dict(zip(chosen, encoded, strict=True))
        return [out[n] for n in range(len(data))]

    @abstractmethod
    def _encode(
        self, pictures: Sequence[Photograph], boxes: Sequence[Tensor | None], batch: dict[str, Any]
    ) -> Iterator[EncodedImage]:
        """Encode a batch of images with the same input shape."""

    def _cells(self, shape: Sequence[int]) -> tuple[int, int]:
        patch = self.detector.backbone.image_tower.patch_size
        return -(-shape[0] // patch), -(-shape[1] // patch)


class TwoStage(DetectorFamily):
    """Family of :class:`OpenVocabRCNN`."""

    kind = "two-stage detector"

    @staticmethod
    def default_policy(policy: ScoringPolicy) -> ScoringPolicy:
        """Sigmoid against background: 0.5 means "as likely as background", independent of the other classes."""
        return policy.with_(activation="sigmoid", sigmoid_reference="background")

    @property
    def nms_iou(self) -> float:  # type: ignore[override]
        """The detector's NMS IoU threshold."""
        return self.detector.roi_head.nms_iou

    def _features(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with autocast(self.device, self.precision):
            features = self.detector.backbone.features(images, dense=True)
            pyramid = self.detector.neck(features.taps)
        return features.dense.float(), tuple(p.float() for p in pyramid)

    def _encode(
        self, pictures: Sequence[Photograph], boxes: Sequence[Tensor | None], batch: dict[str, Any]
    ) -> Iterator[EncodedImage]:
        from mmdet.structures.bbox import bbox2roi

        samples, head = batch["data_samples"], self.detector.roi_head
        dense, pyramid = self._features(batch["inputs"])
        with full_precision(self.device):
            proposals = self._proposals(pyramid, samples, boxes)
            rois = bbox2roi([b for b, _ in proposals])
            pooled = head.dense_vectors(dense, rois, self.policy)
            vectors, deltas = torch.zeros_like(pooled), rois.new_zeros(len(rois), 4)
            if len(rois):
                vectors, deltas = head.bbox_head(head.pool(pyramid, rois))
            counts = [len(b) for b, _ in proposals]
            parts = zip(vectors.split(counts), deltas.split(counts), pooled.split(counts), strict=True)
            for n, (v, d, p) in enumerate(parts):
                own, objectness = proposals[n]
                own_boxes = boxes[n]
                if own_boxes is None:
                    own_boxes = head.bbox_head.bbox_coder.decode(own, d, max_shape=samples[n].img_shape)
                    own_boxes = own_boxes / own_boxes.new_tensor([*samples[n].scale_factor] * 2)
                cells = self._cells(samples[n].img_shape)
                yield EncodedImage(pictures[n], own_boxes.to(self.device), objectness, v, p, dense[n], cells)

    def _proposals(
        self, pyramid: tuple[Tensor, ...], samples: Sequence[Any], boxes: Sequence[Tensor | None]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return boxes in input pixels and their objectness; given boxes get objectness 1."""
        own: Any = [None] * len(samples)
        if any(b is None for b in boxes):
            own = self.detector.rpn_head.predict(pyramid, samples, rescale=False)
        out = []
        for predicted, given, sample in zip(own, boxes, samples, strict=True):
            if given is None:
                out.append((predicted.bboxes, predicted.scores))
            else:
                scale = torch.tensor([*sample.scale_factor] * 2, dtype=torch.float32)
                out.append(((given.cpu() * scale).to(self.device), torch.ones(len(given), device=self.device)))
        return out

    def select(
        self, image: EncodedImage, bank: TextBank, threshold: float, limit: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Select detections as the RoI head does."""
        head = self.detector.roi_head
        dense = image.dense_vectors if self.policy.fuses else None
        return head.select(
            image.boxes,
            image.vectors,
            dense,
            image.objectness,
            bank,
            self.policy,
            score_threshold=threshold - 1e-9,
            max_detections=head.max_per_img if limit is None else limit,
        )

    def scores(self, image: EncodedImage, bank: TextBank) -> Tensor:
        """Return ``[R, K]`` scores of every box for every text, independent of the other texts."""
        head, policy = self.detector.roi_head, self.policy
        dense = image.dense_vectors if policy.fuses else None
        independent = policy.activation == "sigmoid" and not FUSIONS[policy.fusion].renorm
        banks = [bank] if independent else [bank.select([n]) for n in bank.names]
        return torch.cat([head.scores(image.vectors, dense, image.objectness, b, policy) for b in banks], dim=1)

    def embed(self, image: EncodedImage) -> tuple[Tensor, Tensor]:
        """Return boxes and region vectors; averaged with the dense map's vectors if the policy fuses both."""
        return super().embed(image) if self.policy.fuses else (image.boxes, image.vectors)

    def segment(self, image: EncodedImage, expression: str, boxes: Tensor | None) -> np.ndarray:
        """Return masks ``[N, H, W]`` bool of boxes, from the mask head."""
        head = self.detector.roi_head
        if head.mask_head is None or boxes is None:
            return super().segment(image, expression, boxes)
        from mmdet.structures.bbox import bbox2roi
        from mmengine.structures import InstanceData

        data = self.pipeline({"img": np.ascontiguousarray(np.asarray(image.picture.image)[..., ::-1]), "img_id": 0})
        batch = self.detector.data_preprocessor({k: [data[k]] for k in ("inputs", "data_samples")}, False)
        _, pyramid = self._features(batch["inputs"])
        (sample,) = batch["data_samples"]
        scale = torch.tensor([*sample.scale_factor] * 2, dtype=torch.float32)
        inputs = (boxes.cpu() * scale).to(self.device)
        instances = InstanceData(bboxes=inputs, labels=torch.zeros(len(boxes), dtype=torch.long, device=self.device))
        with full_precision(self.device):
            logits = head.masks(pyramid, bbox2roi([inputs]))
            (out,) = head.mask_head.predict_by_feat(
                [logits], [instances], [sample.metainfo], head.mask_test_cfg, rescale=True
            )
        return out.masks.cpu().numpy().astype(bool)


class OneStage(DetectorFamily):
    """Family of :class:`OpenVocabOWL`; every patch token predicts a box."""

    kind = "one-stage detector"
    #: One-to-one matching trains tokens not to duplicate each other, so NMS is off (no IoU exceeds 1).
    nms_iou = 1.0
    #: The texts of an expression are not classes the tokens were matched with, so duplicates do occur.
    ground_iou = 0.7

    def _encode(
        self, pictures: Sequence[Photograph], boxes: Sequence[Tensor | None], batch: dict[str, Any]
    ) -> Iterator[EncodedImage]:
        images, samples = batch["inputs"], batch["data_samples"]
        with autocast(self.device, self.precision):
            features = self.detector.backbone.features(images)
        tokens = features.taps[0].float()
        height, width = images.shape[-2:]
        whole = features.class_token
        with full_precision(self.device):
            output = self.detector.bbox_head(tokens, None if whole is None else whole.float())
        corners = box_convert(output.boxes, "cxcywh", "xyxy") * tokens.new_tensor([width, height, width, height])
        for n, (picture, sample) in enumerate(zip(pictures, samples, strict=True)):
            rows, columns = sample.img_shape[:2]
            own_boxes = torch.minimum(corners[n].clamp(min=0), corners.new_tensor([columns, rows, columns, rows]))
            own_boxes = own_boxes / own_boxes.new_tensor([*sample.scale_factor] * 2)
            vectors, shift, scale = output.vectors[n], output.shift[n], output.scale[n]
            dense = vectors.t().reshape(-1, *tokens.shape[-2:])
            given = boxes[n]
            if given is not None:
                own_boxes, chosen = given.to(self.device), tokens_of(own_boxes, given.to(self.device))
                vectors, shift, scale = vectors[chosen], shift[chosen], scale[chosen]
            objectness = torch.ones(len(own_boxes), device=self.device)
            cells = self._cells(sample.img_shape)
            yield EncodedImage(picture, own_boxes, objectness, vectors, None, dense, cells, shift, scale)

    def _scores(self, image: EncodedImage, bank: TextBank) -> Tensor:
        assert image.shift is not None
        assert image.scale is not None
        head = self.detector.bbox_head
        if bank.dim != head.embed_dim:
            raise UserError(f"The bank has D = {bank.dim}, this head {head.embed_dim}: their towers differ.")
        cosine = bank.cosine(image.vectors, self.policy, counter=head.counter)
        return owl_logits(cosine, image.shift, image.scale).sigmoid()

    def select(
        self, image: EncodedImage, bank: TextBank, threshold: float, limit: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Select the best (token, class) pairs."""
        most = self.detector.bbox_head.max_per_img if limit is None else limit
        parts = bank.parts(CHUNK) if len(bank) > CHUNK else [bank]
        return select_from_parts(
            image.boxes,
            lambda: (self._scores(image, part) for part in parts),
            score_threshold=threshold - 1e-9,
            iou_threshold=self.nms_iou,
            max_detections=most,
        )

    def scores(self, image: EncodedImage, bank: TextBank) -> Tensor:
        """Return ``[R, K]`` scores of every token for every text."""
        return self._scores(image, bank)


def tokens_of(own: Tensor, given: Tensor) -> Tensor:
    """Return ``[R]`` for each given box the token whose own box overlaps it most, else the one with the nearest centre.

    Args:
        own: ``[N, 4]`` xyxy boxes of the tokens.
        given: ``[R, 4]`` xyxy.
    """
    if not len(given):
        return torch.zeros(0, dtype=torch.long, device=given.device)
    far = torch.cdist((given[:, :2] + given[:, 2:]) / 2, (own[:, :2] + own[:, 2:]) / 2)
    return (box_iou(given, own) - 1e-6 * far / far.max().clamp(min=1e-6)).argmax(dim=1)
