"""RoI head: region pooling, scores and selection, with the text bank as an argument.

Shape letters: B images, R regions, C classes, D joint embedding, h w grid cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox2roi, get_box_tensor, scale_boxes
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.roi_heads.chunked_scorer import ChunkedScorer
from smartclip_det.models.selection import select_from_parts


@MODELS.register_module()
class OpenVocabRoIHead(BaseModule):
    """Second stage of :class:`OpenVocabRCNN`.

    Args:
        bbox_roi_extractor: MMDetection extractor over the pyramid.
        bbox_head: an :class:`OpenVocabBBoxHead`.
        dense_stride: pixels per cell of the dense map (the patch size).
        mask_roi_extractor: extractor for masks; default: the one for boxes with 14 x 14 cells.
        mask_head: MMDetection mask head; class-agnostic, since it must handle unseen classes. None: no masks.
        train_cfg: MMDetection ``assigner`` and ``sampler``; ``mask_size`` with a mask head.
        test_cfg: ``score_thr``, ``nms_iou``, ``max_per_img``, ``class_chunk`` (classes scored at once);
            ``mask_thr_binary`` with a mask head.
        init_cfg: as for any MMEngine module.
    """

    def __init__(
        self,
        bbox_roi_extractor: Mapping[str, Any],
        bbox_head: Mapping[str, Any],
        dense_stride: int = 16,
        mask_roi_extractor: Mapping[str, Any] | None = None,
        mask_head: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.bbox_roi_extractor = MODELS.build(dict(bbox_roi_extractor))
        self.bbox_head = MODELS.build(dict(bbox_head))
        self.dense_extractor = MODELS.build(
            {
                "type": "SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": 1, "sampling_ratio": 0},
                "out_channels": self.bbox_head.embed_dim,
                "featmap_strides": [dense_stride],
            }
        )
        if mask_head is not None and not mask_head.get("class_agnostic"):
            raise UserError("The mask head must be class_agnostic=True: novel classes have no masks for training.")
        self.mask_head = MODELS.build(dict(mask_head)) if mask_head else None
        finer = {"roi_layer": {**bbox_roi_extractor["roi_layer"], "output_size": 14}}
        extractor = {**bbox_roi_extractor, **finer, **dict(mask_roi_extractor or {})}
        self.mask_roi_extractor = MODELS.build(extractor) if mask_head else None
        train = dict(train_cfg or {})
        self.mask_train_cfg = ConfigDict(mask_size=train.get("mask_size", 28))
        self.mask_test_cfg = ConfigDict(mask_thr_binary=dict(test_cfg or {}).get("mask_thr_binary", 0.5))
        self.assigner = TASK_UTILS.build(train["assigner"]) if "assigner" in train else None
        self.sampler = (
            TASK_UTILS.build(train["sampler"], default_args={"context": self}) if "sampler" in train else None
        )
        test = {"score_thr": 0.01, "nms_iou": 0.5, "max_per_img": 100, "class_chunk": 4096, **dict(test_cfg or {})}
        self.class_chunk = test["class_chunk"]
        self.score_thr, self.nms_iou, self.max_per_img = test["score_thr"], test["nms_iou"], test["max_per_img"]

    def loss(
        self,
        pyramid: Sequence[Tensor],
        proposals: Sequence[InstanceData],
        samples: Sequence[Any],
        bank: TextBank,
        policy: ScoringPolicy,
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            pyramid: maps of the neck.
            proposals: per image ``bboxes [R, 4]`` in input pixels.
            samples: data samples with ``gt_instances``.
            bank: the active bank; labels index into it.
            policy: scoring policy.
        """
        if self.assigner is None or self.sampler is None:
            raise UserError("Training needs train_cfg.rcnn with an assigner and a sampler.")
        sampled = []
        for proposed, sample in zip(proposals, samples, strict=True):
            candidates = InstanceData(priors=proposed.bboxes)
            truth = sample.gt_instances
            truth.bboxes = get_box_tensor(truth.bboxes)
            ignored = sample.get("ignored_instances")
            if ignored is not None:
                ignored.bboxes = get_box_tensor(ignored.bboxes)
            assigned = self.assigner.assign(candidates, truth, ignored)
            sampled.append(self.sampler.sample(assigned, candidates, truth))
        rois = bbox2roi([s.priors for s in sampled])
        vectors, deltas = self.bbox_head(self.pool(pyramid, rois))
        losses = self.bbox_head.loss(vectors, deltas, self.bbox_head.targets(sampled, bank), bank, policy)
        if self.mask_head is not None:
            rois = bbox2roi([s.pos_priors for s in sampled])
            truth = [s.gt_instances for s in samples]
            results = self.mask_head.loss_and_target(self.masks(pyramid, rois), sampled, truth, self.mask_train_cfg)
            losses.update(results["loss_mask"])
        return losses

    def masks(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        """``[R, 1, s, s]`` mask logits of ``[R, 5]`` rois."""
        assert self.mask_head is not None
        assert self.mask_roi_extractor is not None
        levels = self.mask_roi_extractor.num_inputs
        return self.mask_head(self.mask_roi_extractor([p.float().contiguous() for p in pyramid[:levels]], rois))

    def pool(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        """``[R, 5]`` rois (image, xyxy) to pooled regions; fp32 and contiguous, as mmcv's CPU operator requires."""
        levels = self.bbox_roi_extractor.num_inputs
        return self.bbox_roi_extractor([p.float().contiguous() for p in pyramid[:levels]], rois)

    def dense_vectors(self, dense: Tensor, rois: Tensor, policy: ScoringPolicy) -> Tensor:
        """``[R, D]`` vectors pooled from the dense map ``[B, D, h, w]``."""
        dense = dense.float()
        if policy.dense_norm == "pixel":
            dense = functional.normalize(dense, dim=1)
        return self.dense_extractor([dense.contiguous()], rois).flatten(1)

    def scores(
        self,
        vectors: Tensor,
        dense_vectors: Tensor | None,
        objectness: Tensor | None,
        bank: TextBank,
        policy: ScoringPolicy,
    ) -> Tensor:
        """``[R, C]`` fused class scores, background dropped.

        Args:
            vectors: ``[R, D]`` of the box head.
            dense_vectors: ``[R, D]`` of the dense map; needed if the policy uses fusion.
            objectness: ``[R]`` in [0, 1]; needed by some fusions.
            bank: the active bank.
            policy: scoring policy.
        """
        scorer = ChunkedScorer(self.bbox_head, vectors, dense_vectors, objectness, policy)
        return scorer.scores(bank, *scorer.totals([bank]))

    def select(
        self,
        boxes: Tensor,
        vectors: Tensor,
        dense_vectors: Tensor | None,
        objectness: Tensor | None,
        bank: TextBank,
        policy: ScoringPolicy,
        *,
        score_threshold: float,
        max_detections: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Box indices, class indices and scores ``[N]`` of the detections, best first.

        A vocabulary with more than ``class_chunk`` classes is scored in chunks, twice (for the softmax total, then for
        the scores), so that memory is bounded by R x ``class_chunk``. The detections are the same.

        Args:
            boxes: ``[R, 4]`` xyxy.
            vectors: see :meth:`scores`.
            dense_vectors: see :meth:`scores`.
            objectness: see :meth:`scores`.
            bank: the active bank.
            policy: scoring policy.
            score_threshold: only pairs with a higher score are kept.
            max_detections: maximum of N.
        """
        scorer = ChunkedScorer(self.bbox_head, vectors, dense_vectors, objectness, policy)
        parts = bank.parts(self.class_chunk) if len(bank) > self.class_chunk else [bank]
        totals = scorer.totals(parts)
        return select_from_parts(
            boxes,
            lambda: (scorer.scores(part, *totals) for part in parts),
            score_threshold=score_threshold,
            iou_threshold=self.nms_iou,
            max_detections=max_detections,
        )

    def predict(
        self,
        pyramid: Sequence[Tensor],
        dense: Tensor | None,
        proposals: Sequence[InstanceData],
        samples: Sequence[Any],
        bank: TextBank,
        policy: ScoringPolicy,
        rescale: bool = True,
    ) -> list[InstanceData]:
        """Detections of each image.

        Args:
            pyramid: maps of the neck.
            dense: ``[B, D, h, w]`` dense map, or None if the policy does not use fusion.
            proposals: per image ``bboxes [R, 4]`` in input pixels, and ``scores [R]`` if known.
            samples: data samples with ``img_shape`` and, for ``rescale``, ``scale_factor``.
            bank: the active bank.
            policy: scoring policy.
            rescale: return boxes in pixels of the original image.

        Returns:
            Per image ``bboxes [N, 4]``, ``scores [N]``, ``labels [N]`` (bank indices) and ``label_names`` (N names);
            with a mask head also ``masks [N, H, W]`` bool.
        """
        rois = bbox2roi([p.bboxes for p in proposals])
        if not len(rois):
            none = [
                _detections(rois.new_zeros(0, 4), rois.new_zeros(0), rois.new_zeros(0).long(), bank) for _ in samples
            ]
            return none if self.mask_head is None else self._with_masks(pyramid, none, samples, rescale)
        vectors, deltas = self.bbox_head(self.pool(pyramid, rois))
        dense_vectors = None if dense is None else self.dense_vectors(dense, rois, policy)
        counts = [len(p.bboxes) for p in proposals]
        pooled = [None] * len(counts) if dense_vectors is None else dense_vectors.split(counts)
        parts = zip(
            rois.split(counts), vectors.split(counts), deltas.split(counts), pooled, proposals, samples, strict=True
        )
        # A mask head pools at input size, and rescales boxes afterwards.
        rescale_now = rescale and self.mask_head is None
        detections = [
            self._predict_image(r[:, 1:], v, d, dense_part, p.get("scores"), s, bank, policy, rescale_now)
            for r, v, d, dense_part, p, s in parts
        ]
        return detections if self.mask_head is None else self._with_masks(pyramid, detections, samples, rescale)

    def _with_masks(
        self, pyramid: Sequence[Tensor], detections: list[InstanceData], samples: Sequence[Any], rescale: bool
    ) -> list[InstanceData]:
        assert self.mask_head is not None
        rois = bbox2roi([d.bboxes for d in detections])
        counts = [len(d) for d in detections]
        if len(rois):
            logits = self.masks(pyramid, rois).split(counts)
        else:
            logits = tuple(rois.new_zeros(0, 1, 28, 28) for _ in detections)
        metas = [s.metainfo for s in samples]
        out: list[InstanceData] = self.mask_head.predict_by_feat(
            logits, detections, metas, self.mask_test_cfg, rescale=rescale
        )
        return out

    def _predict_image(
        self,
        boxes: Tensor,
        vectors: Tensor,
        deltas: Tensor,
        dense_vectors: Tensor | None,
        objectness: Tensor | None,
        sample: Any,
        bank: TextBank,
        policy: ScoringPolicy,
        rescale: bool,
    ) -> InstanceData:
        decoded = self.bbox_head.bbox_coder.decode(boxes, deltas.float(), max_shape=sample.img_shape)
        if rescale and len(decoded):
            decoded = scale_boxes(decoded, [1 / s for s in sample.scale_factor])
        rows, classes, values = self.select(
            decoded,
            vectors,
            dense_vectors,
            objectness,
            bank,
            policy,
            score_threshold=self.score_thr,
            max_detections=self.max_per_img,
        )
        return _detections(decoded[rows], values, classes, bank)


def _detections(boxes: Tensor, scores: Tensor, labels: Tensor, bank: TextBank) -> InstanceData:
    names = [bank.names[i] for i in labels.tolist()]
    return InstanceData(bboxes=boxes, scores=scores, labels=labels, label_names=names)
