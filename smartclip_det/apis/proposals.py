"""Candidate boxes of any MMDetection detector, including Grounding DINO, to be re-ranked for grounding.

Boxes are xyxy pixels of the original image, best-scored first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smartclip_det.apis.detector_loading import array_pipeline, build_detector


class DetectorProposals:
    """The best boxes of a detector, regardless of class; for a detector with text input, those of an expression."""

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path | None,
        *,
        device: str = "cpu",
        cfg_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the detector.

        Args:
            config: any MMDetection config.
            checkpoint: weights; None for random weights (for tests only).
            device: device of the detector.
            cfg_options: config overrides.

        Raises:
            UserError: for missing files, a checkpoint with missing parameters, or a test data set without a pipeline.
        """
        cfg, detector = build_detector(config, checkpoint, cfg_options)
        self.detector = detector.to(device).eval()
        facts = ("text", "custom_entities", "tokens_positive")
        self.pipeline = array_pipeline(cfg.test_dataloader.dataset, facts if self.reads_text else ())

    @property
    def reads_text(self) -> bool:
        """Whether boxes depend on the expression."""
        return hasattr(self.detector, "language_model")

    @torch.no_grad()
    def __call__(
        self, image: np.ndarray, expressions: Sequence[str], top_k: int = 10
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return boxes and scores for each expression; identical for all if the detector has no text input.

        Args:
            image: ``[H, W, 3]`` uint8 RGB.
            expressions: E expressions.
            top_k: maximum number of boxes.

        Returns:
            E pairs of ``[N, 4]`` xyxy boxes and ``[N]`` scores in [0, 1].
        """
        queries = list(expressions) if self.reads_text else [""]
        boxes = [self._one(image, e, top_k) for e in queries]
        return boxes if self.reads_text else boxes * len(expressions)

    def _one(self, image: np.ndarray, expression: str, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        data: dict[str, Any] = {"img": np.ascontiguousarray(image[..., ::-1]), "img_id": 0}
        if self.reads_text:
            # -1: the whole sentence is one phrase, as in MMDetection's referring-expression configs.
            data |= {"text": expression, "custom_entities": False, "tokens_positive": -1}
        packed = self.pipeline(data)
        batch = self.detector.data_preprocessor(
            {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}, False
        )
        out = self.detector.predict(batch["inputs"], batch["data_samples"])[0].pred_instances
        order = out.scores.argsort(descending=True)[:top_k]
        return out.bboxes[order].cpu().numpy(), out.scores[order].cpu().numpy()
