"""SmartCLIPPredictor: one image encoding, many cheap text queries.

Shape letters: R regions, C classes, D joint embedding, h w grid cells, H W image pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smartclip_det.apis.building import array_pipeline, build_detector
from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.towers.smartclip import SmartCLIP
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.vocabulary import build_bank, default_cache_dir
from smartclip_det.utils.devices import resolve_device
from smartclip_det.utils.images import as_rgb, open_rgb

ImageLike = str | Path | Image.Image | np.ndarray


@dataclass
class Detections:
    """Detections of one image, best first.

    Attributes:
        boxes: ``[N, 4]`` xyxy pixels of the original image.
        scores: ``[N]`` in [0, 1].
        labels: ``[N]`` indices into ``names``.
        names: the vocabulary.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def label_names(self) -> list[str]:
        """N names."""
        return [self.names[i] for i in self.labels]

    def above(self, threshold: float) -> Detections:
        """Those that score at least ``threshold``."""
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.names)

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values for JSON: ``box`` (xyxy), ``score``, ``name``."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.label_names, strict=True)
        return [{"box": b, "score": s, "name": n} for b, s, n in rows]


@dataclass
class Explanation:
    """Where and by which dimensions a text matches an image.

    Attributes:
        similarity: ``[h, w]`` masked cosine of each grid cell, -1..1.
        mask: ``[D]`` the text's mask.
        text: the text.
    """

    similarity: np.ndarray
    mask: np.ndarray
    text: str


@dataclass
class _EncodedImage:
    """What an image is encoded to, once.

    Attributes:
        vectors: ``[R, D]`` of the box head.
        dense_vectors: ``[R, D]`` pooled from the dense map.
        objectness: ``[R]``.
        boxes: ``[R, 4]`` decoded xyxy boxes in original pixels.
        dense: ``[1, D, h, w]`` dense map.
        image_cells: (rows, columns) of the grid that show the image and not padding.
    """

    vectors: Tensor
    dense_vectors: Tensor
    objectness: Tensor
    boxes: Tensor
    dense: Tensor
    image_cells: tuple[int, int]


class SmartCLIPPredictor:
    """Detect, ground and explain with an open-vocabulary detector.

    >>> predictor = SmartCLIPPredictor.from_config("config.py", "epoch_3.pth")   # doctest: +SKIP
    >>> predictor.set_image("street.jpg")                                         # doctest: +SKIP
    >>> predictor.detect(["red mug", "left dog"]).above(0.5)                      # doctest: +SKIP
    """

    def __init__(
        self, detector: Any, encoder: SmartCLIP, pipeline: Any, *, templates: str | Sequence[str] = "photo",
        policy: ScoringPolicy | None = None, cache_dir: str | Path | None = None,
    ) -> None:  # fmt: skip
        """Build from parts; :meth:`from_config` is the usual way.

        Args:
            detector: an :class:`OpenVocabRCNN`.
            encoder: the towers that the detector's backbone came from.
            pipeline: MMDetection test pipeline that takes ``img`` arrays.
            templates: prompts of :meth:`set_vocabulary`.
            policy: scoring policy; default: the detector's with a sigmoid against background, so that a class's
                score does not depend on the other classes asked for.
            cache_dir: folder of encoded texts, None for none.
        """
        self.detector = detector.eval()
        self.encoder = encoder.eval()
        self.pipeline = pipeline
        self.templates = templates
        self.cache_dir = cache_dir
        self.policy = policy or detector.policy.with_(activation="sigmoid", sigmoid_reference="background")
        self._image: _EncodedImage | None = None

    @staticmethod
    def from_config(
        config: str | Path, checkpoint: str | Path | None = None, *, device: str = "auto",
        cfg_options: Mapping[str, Any] | None = None, templates: str | Sequence[str] = "photo",
        policy: Mapping[str, Any] | None = None, use_cache: bool = True,
    ) -> SmartCLIPPredictor:  # fmt: skip
        """Build from a config of an :class:`OpenVocabRCNN` and its checkpoint.

        Args:
            config: config file.
            checkpoint: weights; None for the config's initial ones (random heads: for tests only).
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            cfg_options: overrides.
            templates: prompts of :meth:`set_vocabulary`.
            policy: changes to the default policy of the constructor.
            use_cache: keep encoded texts in the user's cache folder.

        Raises:
            UserError: for missing files, configs of other detectors, or a device that is not there.
        """
        cfg, detector = build_detector(config, checkpoint, cfg_options, only="OpenVocabRCNN")
        place = resolve_device(device)
        changes = {"activation": "sigmoid", "sigmoid_reference": "background", **(policy or {})}
        pipeline = array_pipeline(cfg.test_dataloader.dataset)
        return SmartCLIPPredictor(
            detector.to(place), load_towers(cfg.towers).to(place), pipeline, templates=templates,
            policy=detector.policy.with_(**changes), cache_dir=default_cache_dir() if use_cache else None,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the detector is."""
        return next(self.detector.parameters()).device

    @property
    def protocol(self) -> dict[str, Any]:
        """What belongs into the stamp of its answers."""
        return {"policy": self.policy.to_dict(), "towers": self.encoder.checkpoint_hash}

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Names of the bank in force; empty before :meth:`set_vocabulary`."""
        bank = self.detector.text_bank
        return () if bank is None else bank.names

    def set_vocabulary(self, vocabulary: Sequence[str] | TextBank, *, seen: Sequence[str] | None = None) -> TextBank:
        """Put a vocabulary in force; weights are not touched.

        Args:
            vocabulary: class names or a ready bank of the same towers.
            seen: names that were trained on; fusions weigh them otherwise. Default: all count as unseen when names
                are given.
        """
        if isinstance(vocabulary, TextBank):
            bank = vocabulary
        else:
            bank = self._encode(vocabulary, self.templates).with_seen(seen or [])
        bank = bank.to(self.device)
        self.detector.set_text_bank(bank)
        return bank

    def _encode(self, names: Sequence[str], templates: str | Sequence[str]) -> TextBank:
        return build_bank(
            self.encoder, names, templates=templates, template_order=self.policy.template_order,
            cache_dir=self.cache_dir,
        ).to(self.device)  # fmt: skip

    @torch.no_grad()
    def set_image(self, image: ImageLike) -> None:
        """Encode an image: tower, pyramid, proposals and region vectors, none of which depend on texts.

        Args:
            image: path, PIL image (its EXIF orientation is applied) or ``[H, W, 3]`` uint8 RGB array.

        Raises:
            UserError: for a missing or unreadable file or an array of another shape.
        """
        from mmdet.structures.bbox import bbox2roi

        array = load_image(image)
        data = self.pipeline({"img": np.ascontiguousarray(array[..., ::-1]), "img_id": 0})
        batch = self.detector.data_preprocessor(
            {"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}, False
        )
        images, samples = batch["inputs"], batch["data_samples"]
        head = self.detector.roi_head
        features = self.detector.backbone.features(images, dense=True)
        pyramid = tuple(self.detector.neck(features.taps))
        proposals = self.detector.rpn_head.predict(pyramid, samples, rescale=False)[0]
        rois = bbox2roi([proposals.bboxes])
        vectors, deltas = head.bbox_head(head.pool(pyramid, rois))
        sample = samples[0]
        boxes = head.bbox_head.bbox_coder.decode(proposals.bboxes, deltas, max_shape=sample.img_shape)
        scale = boxes.new_tensor([*sample.scale_factor, *sample.scale_factor])
        patch = self.detector.backbone.image_tower.patch_size
        cells = (-(-sample.img_shape[0] // patch), -(-sample.img_shape[1] // patch))
        self._image = _EncodedImage(
            vectors, head.dense_vectors(features.dense, rois, self.policy), proposals.scores, boxes / scale,
            features.dense, cells,
        )  # fmt: skip

    def proposals(self, top_k: int = 100) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` class-agnostic boxes of the image set before, and their objectness.

        Returns:
            ``[N, 4]`` xyxy pixels of the original image, after the box head's regression, and ``[N]`` in [0, 1].
        """
        image = self._encoded()
        order = image.objectness.argsort(descending=True)[:top_k]
        return image.boxes[order].cpu().numpy(), image.objectness[order].cpu().numpy()

    def _encoded(self) -> _EncodedImage:
        if self._image is None:
            raise UserError("No image is set. Call set_image(image) before detect, ground or explain.")
        return self._image

    @torch.no_grad()
    def detect(
        self, texts: Sequence[str] | None = None, *, threshold: float = 0.0, max_detections: int | None = None
    ) -> Detections:
        """Boxes of each text in the image set before.

        Args:
            texts: phrases to look for; None for the vocabulary in force. Given texts do not replace it.
            threshold: lowest score kept.
            max_detections: boxes at most; default: the detector's.
        """
        bank = self.detector.text_bank if texts is None else self._encode(texts, self.templates).with_seen([])
        if bank is None:
            raise UserError("No texts given and no vocabulary in force. Give texts or call set_vocabulary([...]).")
        return self._score(bank, threshold, max_detections or self.detector.roi_head.max_per_img)

    def _score(self, bank: TextBank, threshold: float, limit: int) -> Detections:
        image, head = self._encoded(), self.detector.roi_head
        dense = image.dense_vectors if self.policy.fuses else None
        rows, classes, values = head.select(
            image.boxes, image.vectors, dense, image.objectness, bank, self.policy,
            score_threshold=max(threshold, 0.0) - 1e-9, max_detections=limit,
        )  # fmt: skip
        return Detections(image.boxes[rows].cpu().numpy(), values.cpu().numpy(), classes.cpu().numpy(), bank.names)

    @overload
    def ground(self, expression: str, *, top_k: int = 1, threshold: float = 0.0) -> Detections: ...

    @overload
    def ground(self, expression: Sequence[str], *, top_k: int = 1, threshold: float = 0.0) -> list[Detections]: ...

    @torch.no_grad()
    def ground(
        self, expression: str | Sequence[str], *, top_k: int = 1, threshold: float = 0.0
    ) -> Detections | list[Detections]:
        """The boxes that referring expressions fit best: zero-shot, proposals ranked by masked cosine.

        Expressions are encoded as they stand, without a template, and all in one pass; the image is not encoded again.

        Args:
            expression: one text, or several.
            top_k: boxes of each expression at most.
            threshold: lowest score; an expression that no box reaches has no boxes: "none".

        Returns:
            Detections best first, or a list of them for several expressions.
        """
        texts = [expression] if isinstance(expression, str) else list(expression)
        if not texts or not all(t.strip() for t in texts):
            raise UserError("The expression is empty.")
        bank = self._encode(list(dict.fromkeys(texts)), "none").with_seen([])
        found = [self._score(bank.select([t]), threshold, top_k) for t in texts]
        return found[0] if isinstance(expression, str) else found

    @torch.no_grad()
    def explain(self, text: str) -> Explanation:
        """Masked cosine of each grid cell with a text, and the text's mask."""
        image = self._encoded()
        bank = self._encode([text], "none")
        d, h, w = image.dense.shape[1:]
        cosine = bank.cosine(image.dense[0].reshape(d, h * w).t(), self.policy, mask_mode=self.policy.dense_mode)
        rows, columns = image.image_cells
        mask = bank.resolved_masks(self.policy.dense_mode)
        kept = torch.ones(d) if mask is None else mask[0]
        return Explanation(cosine.view(h, w)[:rows, :columns].cpu().numpy(), kept.cpu().numpy(), text)

    def detect_images(
        self, images: Iterable[ImageLike], texts: Sequence[str] | None = None, **options: Any
    ) -> Iterator[Detections]:
        """:meth:`detect` image by image; the texts are encoded once."""
        if texts is not None:
            self.set_vocabulary(texts)
        for image in images:
            self.set_image(image)
            yield self.detect(**options)


def load_image(image: ImageLike) -> np.ndarray:
    """``[H, W, 3]`` uint8 RGB of a path, PIL image or array."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f"An image array must be [H, W, 3] uint8 RGB; given {list(image.shape)} {image.dtype}.")
        return image
    return np.asarray(as_rgb(image) if isinstance(image, Image.Image) else open_rgb(image))
