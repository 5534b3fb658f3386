"""Candidate boxes of any MMDetection detector, Grounding DINO included, for grounding that ranks them again.

Boxes are xyxy pixels of the original image, best-scored first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smartclip_det.core.errors import UserError


class DetectorProposals:
    """The best boxes of a detector, whatever their class; of a detector that reads text, for an expression."""

    def __init__(
        self, config: str | Path, checkpoint: str | Path | None, *, device: str = "cpu",
        cfg_options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Build.

        Args:
            config: any MMDetection config.
            checkpoint: its weights; None for random ones (for tests only).
            device: where to put it.
            cfg_options: overrides.

        Raises:
            UserError: for missing files, or a config that MMDetection cannot build.
        """
        from mmdet.registry import MODELS
        from mmengine.dataset import Compose
        from mmengine.registry import init_default_scope
        from mmengine.runner import load_checkpoint

        from smartclip_det import parts  # noqa: F401 (registers everything)
        from smartclip_det.engine.config import fit_norm_layers, load_config
        from smartclip_det.engine.launch import refuse_foreign_checkpoint

        cfg = load_config(config, cfg_options)
        fit_norm_layers(cfg, distributed=False)
        init_default_scope("mmdet")
        self.detector = MODELS.build(cfg.model)
        if checkpoint is not None:
            if not Path(checkpoint).is_file():
                raise UserError(f"No detector checkpoint at {checkpoint}.")
            refuse_foreign_checkpoint(self.detector, checkpoint)
            # Every parameter was found just now; buffers that newer libraries no longer save may be left over.
            load_checkpoint(self.detector, str(checkpoint), map_location="cpu", strict=False)
        self.detector.to(device).eval()
        steps = [dict(p) for p in _pipeline_of(cfg.test_dataloader.dataset) if "Annotations" not in p["type"]]
        steps[0] = {"type": "mmdet.LoadImageFromNDArray"}
        for step in steps:
            if step["type"].endswith("PackDetInputs"):
                step["meta_keys"] = ("img_id", "ori_shape", "img_shape", "scale_factor", "text", "custom_entities",
                                     "tokens_positive")  # fmt: skip
        self.pipeline = Compose(steps)

    @property
    def reads_text(self) -> bool:
        """Whether boxes depend on the expression."""
        return hasattr(self.detector, "language_model")

    @torch.no_grad()
    def __call__(
        self, image: np.ndarray, expressions: Sequence[str], top_k: int = 10
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boxes and scores for each expression; the same ones where the detector reads no text.

        Args:
            image: ``[H, W, 3]`` uint8 RGB.
            expressions: E expressions.
            top_k: boxes at most.

        Returns:
            E pairs of ``[N, 4]`` xyxy boxes and ``[N]`` scores in [0, 1].
        """
        asked = list(expressions) if self.reads_text else [""]
        found = [self._one(image, e, top_k) for e in asked]
        return found if self.reads_text else found * len(expressions)

    def _one(self, image: np.ndarray, expression: str, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        data: dict[str, Any] = {"img": np.ascontiguousarray(image[..., ::-1]), "img_id": 0}
        if self.reads_text:
            # -1: the whole sentence is one thing, as in MMDetection's referring-expression configs.
            data |= {"text": expression, "custom_entities": False, "tokens_positive": -1}
        packed = self.pipeline(data)
        batch = self.detector.data_preprocessor(
            {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}, False
        )
        out = self.detector.predict(batch["inputs"], batch["data_samples"])[0].pred_instances
        order = out.scores.argsort(descending=True)[:top_k]
        return out.bboxes[order].cpu().numpy(), out.scores[order].cpu().numpy()


def _pipeline_of(dataset: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The pipeline of a data set, or of the first of those that it wraps."""
    while "pipeline" not in dataset:
        inner = dataset.get("dataset") or next(iter(dataset.get("datasets", ())), None)
        if inner is None:
            raise UserError(
                "The config's test data set has no pipeline: images could not be prepared for the detector."
            )
        dataset = inner
    return dataset["pipeline"]
