"""A detector of a config, with its weights, for images as arrays: what the predictor and proposals share."""

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
    """The config and its detector, on the CPU.

    Args:
        config: any MMDetection config.
        checkpoint: weights; None for the config's initial ones (random heads: for tests only).
        cfg_options: overrides.
        only: the type, or one of the types, that the model must have.

    Raises:
        UserError: for missing files, configs of other detectors, or a checkpoint that lacks parameters.
    """
    from smartclip_det import register_detection  # noqa: F401, I001 (registers everything, and tells first what is not installed)
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope
    from mmengine.runner import load_checkpoint

    from smartclip_det.engine.config import fit_norm_layers, load_config
    from smartclip_det.engine.launch import refuse_foreign_checkpoint

    cfg = load_config(config, cfg_options)
    allowed = [only] if isinstance(only, str) else list(only or ())
    if allowed and cfg.model.type not in allowed:
        raise UserError(f"A config of {' or '.join(allowed)} is needed; {config} builds {cfg.model.type}.")
    fit_norm_layers(cfg, distributed=False)
    init_default_scope("mmdet")
    detector = MODELS.build(cfg.model)
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise UserError(f"No checkpoint at {checkpoint}. tools/train.py prints where it wrote them.")
        refuse_foreign_checkpoint(detector, checkpoint)
        # Missing and unlike tensors were refused just now. Frozen towers may be left out of a file, and buffers that
        # newer libraries no longer save may be left over in one.
        load_checkpoint(detector, str(checkpoint), map_location="cpu", strict=False)
    return cfg, detector


def array_pipeline(dataset: Mapping[str, Any], facts: Sequence[str] = ()) -> Any:
    """The test pipeline of a data set, or of the first of those that it wraps, for ``img`` arrays.

    Args:
        dataset: its config.
        facts: keys of the data that go into data samples, beside the sizes.

    Raises:
        UserError: for a data set without a pipeline.
    """
    from mmengine.dataset import Compose

    while "pipeline" not in dataset:
        inner = dataset.get("dataset") or next(iter(dataset.get("datasets", ())), None)
        if inner is None:
            raise UserError(
                "The config's test data set has no pipeline: images could not be prepared for the detector."
            )
        dataset = inner
    steps = [dict(p) for p in dataset["pipeline"] if "Annotations" not in p["type"]]
    steps[0] = {"type": "mmdet.LoadImageFromNDArray"}
    steps[-1] = {**steps[-1], "meta_keys": (*_FACTS, *facts)}
    return Compose(steps)
