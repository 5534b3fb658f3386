"""Build a detector from a config and a checkpoint, for image arrays; shared by the predictor and by proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError

_FACTS = ("img_id", "ori_shape", "img_shape", "scale_factor")


def build_detector(
    config: str | Path,
    checkpoint: str | Path | None,
    cfg_options: Mapping[str, Any] | None = None,
    only: str | Sequence[str] | None = None,
) -> tuple[Any, Any]:
    """Build a detector on the CPU; returns the config and the detector.

    Args:
        config: any MMDetection config.
        checkpoint: weights; None for the config's initial weights (random heads, for tests only).
        cfg_options: config overrides.
        only: allowed model type or types.

    Raises:
        UserError: for missing files, configs with another model type, or a checkpoint with missing parameters.
    """
    from smartclip_det import register_detection  # noqa: F401, I001 (registers all modules; reports missing packages first)
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope
    from mmengine.runner import load_checkpoint

    from smartclip_det.engine.config import fit_norm_layers, load_config
    from smartclip_det.engine.launch import refuse_foreign_checkpoint

    cfg = load_config(config, cfg_options)
    allowed = [only] if isinstance(only, str) else list(only or ())
    if allowed and cfg.model.type not in allowed:
        raise UserError(f"The config must build {' or '.join(allowed)}; {config} builds {cfg.model.type}.")
    fit_norm_layers(cfg, distributed=False)
    init_default_scope("mmdet")
    detector = MODELS.build(cfg.model)
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise UserError(f"No checkpoint at {checkpoint}. tools/train.py prints where it wrote them.")
        refuse_foreign_checkpoint(detector, checkpoint)
        # Missing and mismatched tensors were rejected above. strict=False: a checkpoint may omit frozen towers, and
        # may contain buffers that newer libraries no longer save.
        load_checkpoint(detector, str(checkpoint), map_location="cpu", strict=False)
    return cfg, detector


def array_pipeline(dataset: Mapping[str, Any], facts: Sequence[str] = ()) -> Any:
    """Build the test pipeline of a data set, unwrapping dataset wrappers, with ``img`` arrays as input.

    Args:
        dataset: data set config.
        facts: extra ``meta_keys`` for the data samples, in addition to the image sizes.

    Raises:
        UserError: for a data set without a pipeline.
    """
    from mmengine.dataset import Compose

    while "pipeline" not in dataset:
        inner = dataset.get("dataset") or next(iter(dataset.get("datasets", ())), None)
        if inner is None:
            raise UserError("The test data set of the config has no pipeline, so images cannot be preprocessed.")
        dataset = inner
    steps = [dict(p) for p in dataset["pipeline"] if "Annotations" not in p["type"]]
    steps[0] = {"type": "mmdet.LoadImageFromNDArray"}
    steps[-1] = {**steps[-1], "meta_keys": (*_FACTS, *facts)}
    return Compose(steps)
