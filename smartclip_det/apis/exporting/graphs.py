"""Image towers and detectors as traceable modules: tensors in, tensors out.

Each computes what :class:`Predictor` computes. The input size is fixed; the batch size of towers and one-stage
detectors and the number of names of a bank input are dynamic.

Shape letters: B images, K texts, N detections, R regions, D joint embedding, h w grid cells, H W pixels.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, roi_align

from smartclip_det.apis.exporting.graph_bank import InputBank
from smartclip_det.apis.exporting.selection import select_fixed
from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank


class Graph(nn.Module):
    """A traceable module, its example inputs and its dynamic axes."""

    #: Written to the metadata of the file.
    kind = ""
    outputs: tuple[str, ...] = ()
    #: Whether the batch size is dynamic.
    any_batch = True

    @abstractmethod
    def examples(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Example inputs by name for H x W pixels; dynamic axes have a length of at least 2."""

    @property
    def varying(self) -> dict[str, dict[int, str]]:
        """Dynamic axes of each input: axis -> name."""
        return {"images": {0: "batch"}} if self.any_batch else {}

    @abstractmethod
    def halve(self) -> None:
        """Convert the image encoder to fp16; inputs, outputs, boxes and scores stay fp32."""

    @contextmanager
    def traceable(self) -> Iterator[None]:
        """Context in which the module can be traced."""
        yield


class TowerGraph(Graph):
    """``images [B, 3, H, W]`` to unnormalised ``pooled [B, D]`` and ``dense [B, D, h, w]``.

    Args:
        image_tower: a :class:`VisionTransformer` or :class:`LocalTower`.
        dense_mode: how the last block computes the dense map.
    """

    kind = "image_tower"
    outputs = ("pooled", "dense")
    image_tower: Any

    def __init__(self, image_tower: nn.Module, dense_mode: str) -> None:
        super().__init__()
        self.image_tower, self.dense_mode = image_tower, dense_mode

    def examples(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Two images."""
        return {"images": torch.zeros(2, 3, *size)}

    def halve(self) -> None:
        """Convert the tower."""
        self.image_tower = copy.deepcopy(self.image_tower).half()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode."""
        found: Any = self.image_tower.features(
            images.to(_dtype(self.image_tower)), dense_mode=self.dense_mode, pooled=True
        )
        return found.pooled.float(), found.dense.float()


class DetectorGraph(Graph):
    """``images`` and ``sizes [B, 2]`` (height, width of each image inside the padded input) to detections.

    Outputs ``boxes [B, N, 4]`` (xyxy, input pixels), ``scores [B, N]`` in descending order and ``labels [B, N]``
    (indices into the vocabulary). Images with fewer than N detections are padded with label -1 and score 0. With a bank
    input, ``embeds [K, D]`` and ``masks [K, D]`` are inputs too.

    Args:
        detector: in eval mode.
        policy: scoring policy.
        bank: the vocabulary; with a bank input only its background and D are used.
        fold: whether the vocabulary is stored in the graph; otherwise it is an input.
        threshold: minimum score of a detection.
    """

    outputs = ("boxes", "scores", "labels")
    detector: Any

    def __init__(
        self, detector: nn.Module, policy: ScoringPolicy, bank: TextBank, *, fold: bool, threshold: float
    ) -> None:
        super().__init__()
        self.detector, self.policy, self.bank, self.fold = detector, policy, bank, fold
        self.threshold = threshold
        # Fills the bank's caches: they depend on values, which do not exist during tracing.
        for each in (bank, bank.background):
            if each is not None:
                for mode in (policy.mask_mode, policy.dense_mode):
                    each.cosine(torch.ones(1, each.dim), policy, mask_mode=mode)

    def halve(self) -> None:
        """Convert tower and neck."""
        # Without its bank, whose encoder of query images leads to the predictor, which cannot be copied.
        bank = self.detector.set_text_bank(None)
        half = copy.deepcopy(self.detector)
        self.detector.set_text_bank(bank)
        self.detector = half
        self.detector.backbone.image_tower.half()
        if hasattr(self.detector, "neck"):
            self.detector.neck.half()

    def _features(self, images: Tensor, **options: Any) -> Any:
        return self.detector.backbone.features(images.to(_dtype(self.detector.backbone)), **options)

    def _bank(self, embeds: Tensor | None, masks: Tensor | None) -> TextBank:
        if embeds is None or masks is None:
            return self.bank
        return InputBank(embeds, masks, self.bank.background)

    @property
    def head(self) -> Any:
        """The module that scores regions."""
        return self.detector.bbox_head

    @contextmanager
    def traceable(self) -> Iterator[None]:
        """Without the degenerate-score counter, which would keep traced tensors."""
        head = self.head
        counter, head.counter = head.counter, None
        try:
            yield
        finally:
            head.counter = counter

    def examples(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Full-size images, and two texts for a bank input."""
        count = 2 if self.any_batch else 1
        found = {"images": torch.zeros(count, 3, *size), "sizes": torch.tensor([size] * count, dtype=torch.float32)}
        rows = {} if self.fold else {k: torch.ones(2, self.bank.dim) for k in ("embeds", "masks")}
        return {**found, **rows}

    @property
    def varying(self) -> dict[str, dict[int, str]]:
        """The batch, where dynamic, and the names of a bank input."""
        axes = {n: {0: "batch"} for n in ("images", "sizes")} if self.any_batch else {}
        return axes if self.fold else {**axes, "embeds": {0: "names"}, "masks": {0: "names"}}


class OneStageGraph(DetectorGraph):
    """An :class:`OpenVocabOWL`: one box per patch token, no NMS."""

    kind = "one_stage_detector"

    def forward(
        self, images: Tensor, sizes: Tensor, embeds: Tensor | None = None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detect."""
        height, width = images.shape[-2:]
        features = self._features(images)
        whole = features.class_token
        found = self.head(features.taps[0].float(), None if whole is None else whole.float())
        scores = self.head.logits(found, self._bank(embeds, masks), self.policy).sigmoid()
        corners = box_convert(found.boxes, "cxcywh", "xyxy") * scores.new_tensor([width, height, width, height])
        corners = _inside(corners, sizes)
        # Padded, so that topk finds N scores for any number of texts.
        classes, fill = scores.shape[2], self.head.max_per_img
        flat = scores.flatten(1)
        values, pairs = torch.cat([flat, flat.new_zeros(flat.shape[0], fill)], dim=1).topk(fill)
        kept = values > self.threshold
        rows = torch.where(kept, pairs // classes, 0)
        labels = torch.where(kept, pairs - rows * classes, -1)
        boxes = corners.gather(1, rows.unsqueeze(2).expand(-1, -1, 4)) * kept.unsqueeze(2)
        return boxes, values * kept, labels


class TwoStageGraph(DetectorGraph):
    """An :class:`OpenVocabRCNN` with batch size 1: RPN, NMS, RoIAlign, box head, scores, NMS per class."""

    kind = "two_stage_detector"
    any_batch = False

    def __init__(self, *args: Any, size: tuple[int, int], **options: Any) -> None:
        """Build as :class:`DetectorGraph`.

        Args:
            args: see there.
            size: H and W of the input, for the anchors.
            options: see there.

        Raises:
            UserError: the detector has parts that the graph does not support.
        """
        super().__init__(*args, **options)
        self._check_parts()
        with torch.no_grad():
            maps = self.detector.rpn_head(self.detector.extract_feat(torch.zeros(1, 3, *size)))[0]
        shapes = [m.shape[-2:] for m in maps]
        for n, anchors in enumerate(self.detector.rpn_head.prior_generator.grid_priors(shapes, device="cpu")):
            self.register_buffer(f"anchors_{n}", anchors, persistent=False)

    def _check_parts(self) -> None:
        rpn, head = self.detector.rpn_head, self.detector.roi_head
        extractors = (head.bbox_roi_extractor, head.dense_extractor)
        unsupported = [
            *(f"coder {type(c).__name__}" for c in (rpn.bbox_coder, head.bbox_head.bbox_coder) if not _plain_coder(c)),
            *(f"extractor {type(e).__name__}" for e in extractors if not _plain_extractor(e)),
            *(["an RPN with softmax"] if not rpn.use_sigmoid_cls else []),
            *([f"{rpn.test_cfg.nms.type} in the RPN"] if rpn.test_cfg.nms.get("type", "nms") != "nms" else []),
        ]
        if unsupported:
            raise UserError(
                "The two-stage graph supports DeltaXYWHBBoxCoder, SingleRoIExtractor with average RoIAlign, a sigmoid "
                f"RPN and plain NMS; this detector has {', '.join(unsupported)}. Export only its image tower: "
                "--encoder FILE."
            )

    @property
    def head(self) -> Any:
        """The module that scores regions."""
        return self.detector.roi_head.bbox_head

    def forward(
        self, images: Tensor, sizes: Tensor, embeds: Tensor | None = None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detect."""
        roi_head, bank = self.detector.roi_head, self._bank(embeds, masks)
        features = self._features(images, dense=self.policy.fuses)
        neck = self.detector.neck
        pyramid = [p.float() for p in neck([t.to(_dtype(neck)) for t in features.taps])]
        proposals, objectness = self._proposals(pyramid, sizes)
        rois = torch.cat([torch.zeros_like(proposals[:, :1]), proposals], dim=1)
        vectors, deltas = self.head(_pool(roi_head.bbox_roi_extractor, pyramid, rois))
        pooled = None
        if self.policy.fuses:
            dense = features.dense.float()
            if self.policy.dense_norm == "pixel":
                dense = nn.functional.normalize(dense, dim=1)
            pooled = _pool(roi_head.dense_extractor, [dense], rois).flatten(1)
        decoded = _inside(_decode(self.head.bbox_coder, proposals, deltas)[None], sizes)[0]
        scorer = _exact_scorer(self.head, vectors, pooled, objectness, self.policy)
        scores = scorer.scores(bank, None, None, None)
        # Padding rows of the proposals have objectness 0.
        scores = scores * (objectness > 0).unsqueeze(1)
        count = roi_head.max_per_img
        rows, labels, values = select_fixed(decoded, scores, self.threshold, roi_head.nms_iou, count)
        boxes = decoded[rows] * (labels >= 0).unsqueeze(1)
        return boxes[None], values[None], labels[None]

    def _proposals(self, pyramid: Sequence[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """``[R, 4]`` boxes and ``[R]`` objectness, selected as by MMDetection's ``RPNHead.predict``."""
        rpn, cfg = self.detector.rpn_head, self.detector.rpn_head.test_cfg
        found: list[tuple[Tensor, Tensor]] = []
        for n, (logits, deltas) in enumerate(zip(*rpn(tuple(pyramid)), strict=True)):
            scores = logits[0].permute(1, 2, 0).reshape(-1).sigmoid()
            deltas, anchors = deltas[0].permute(1, 2, 0).reshape(-1, 4), getattr(self, f"anchors_{n}")
            if 0 < cfg.get("nms_pre", -1) < scores.shape[0]:
                scores, best = scores.topk(cfg.nms_pre)
                deltas, anchors = deltas[best], anchors[best]
            found.append((_decode(rpn.bbox_coder, anchors, deltas), scores))
        boxes = _inside(torch.cat([b for b, _ in found])[None], sizes)[0]
        levels = torch.cat([torch.full((len(s),), n) for n, (_, s) in enumerate(found)])
        scores = torch.cat([s for _, s in found])
        least = cfg.get("min_bbox_size", -1)
        if least >= 0:
            scores = scores * ((boxes[:, 2:] - boxes[:, :2]).amin(dim=1) > least)
        # Levels as classes: NMS runs within each level.
        own = levels.unsqueeze(1) == torch.arange(len(found))
        # The same offsets as mmcv.ops.batched_nms, so that IoUs are rounded alike.
        moved = boxes
        if len(levels) < cfg.nms.get("split_thr", 10000):
            moved = boxes + (levels.to(boxes) * (boxes.max() + 1)).unsqueeze(1)
        rows, _, values = select_fixed(moved, scores.unsqueeze(1) * own, 0.0, cfg.nms.iou_threshold, cfg.max_per_img)
        return boxes[rows], values


def _dtype(module: Any) -> torch.dtype:
    return next(module.parameters()).dtype


def _inside(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes ``[B, N, 4]`` xyxy, clipped to images of ``sizes [B, 2]`` (height, width)."""
    far = sizes.flip(1).repeat(1, 2).unsqueeze(1)
    return torch.minimum(boxes.clamp(min=0), far)


def _decode(coder: Any, boxes: Tensor, deltas: Tensor) -> Tensor:
    """Apply deltas to boxes as ``DeltaXYWHBBoxCoder``, without clipping."""
    from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox

    return delta2bbox(
        boxes, deltas.float(), coder.means, coder.stds, None, 16 / 1000, False, coder.add_ctr_clamp, coder.ctr_clamp
    )


def _pool(extractor: Any, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Regions ``[R, C, s, s]`` of ``rois [R, 5]``, as MMDetection's ``SingleRoIExtractor``."""
    layers = extractor.roi_layers[: extractor.num_inputs]

    def align(layer: Any, level: Tensor, mine: Tensor) -> Tensor:
        return roi_align(level, mine, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)

    if len(layers) == 1:
        return align(layers[0], maps[0], rois)
    levels = extractor.map_roi_levels(rois, len(layers))
    out = maps[0].new_zeros(len(rois), maps[0].shape[1], *layers[0].output_size)
    for n, (layer, level) in enumerate(zip(layers, maps, strict=False)):
        rows = (levels == n).nonzero().squeeze(1)
        out = out.index_put((rows,), align(layer, level, rois[rows]))
    return out


def _exact_scorer(*args: Any) -> Any:
    """A :class:`ChunkedScorer` with a sigmoid that is accurate for large negative logits.

    onnxruntime's Sigmoid returns 0 below about -17. Fusions raise scores to small powers, which
    makes that error visible.
    """
    from smartclip_det.models.roi_heads.chunked_scorer import ChunkedScorer

    class ExactScorer(ChunkedScorer):
        def _activated(self, logits: Tensor, log_total: Tensor | None) -> Tensor:
            return super()._activated(logits, log_total) if self.softmax else 1 / (1 + (-logits).exp())

    return ExactScorer(*args)


def _plain_coder(coder: Any) -> bool:
    return type(coder).__name__ == "DeltaXYWHBBoxCoder" and coder.clip_border


def _plain_extractor(extractor: Any) -> bool:
    return type(extractor).__name__ == "SingleRoIExtractor" and all(
        type(layer).__name__ == "RoIAlign" and layer.pool_mode == "avg" for layer in extractor.roi_layers
    )
