"""Load the back end of a predictor: a config and its checkpoint, or towers and a box source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from smartclip_det.apis.box_sources import box_source
from smartclip_det.apis.detector_loading import array_pipeline, build_detector
from smartclip_det.apis.families.base import Family
from smartclip_det.apis.families.training_free import FreeOptions, TrainingFree, free_policy
from smartclip_det.core.errors import UserError, nearest
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.models.boxes import BoxSource
from smartclip_det.models.towers.encoder import check_members
from smartclip_det.models.towers.source import check_encoder_name, load_encoder, load_towers, read_once
from smartclip_det.models.towers.text_side import TextSide
from smartclip_det.utils.devices import resolve_device

#: Supported model types in configs.
DETECTORS, HEAD = ("OpenVocabRCNN", "OpenVocabOWL"), "SmartCLIPReferring"


def family_of_config(
    config: str | Path,
    checkpoint: str | Path | None,
    *,
    device: str,
    cfg_options: Mapping[str, Any] | None,
    policy: Mapping[str, Any] | None,
    precision: str,
    cache_dir: Path | None,
) -> Family:
    """Load the family of a config; its towers are read once, for images and texts.

    Raises:
        UserError: for missing files, configs of other models, and an unavailable device.
    """
    from smartclip_det.apis.families.detectors import OneStage, TwoStage
    from smartclip_det.apis.families.referring import Referring

    place = resolve_device(device)
    with read_once():
        cfg, model = build_detector(config, checkpoint, cfg_options, only=(*DETECTORS, HEAD))
        if cfg.model.type == HEAD:
            if policy:
                raise UserError(
                    "A grounding head computes its own scores; policy only applies to detectors and to towers alone."
                )
            return Referring(model.to(place), cfg.test_dataloader.dataset.get("fit", "pad"), cache_dir=cache_dir)
        texts = TextSide(load_towers(cfg.model.backbone.towers), model.backbone.tower_hash)
    kind = TwoStage if cfg.model.type == DETECTORS[0] else OneStage
    chosen = kind.default_policy(model.policy).with_(**(policy or {}))
    pipeline = array_pipeline(cfg.test_dataloader.dataset)
    return kind(model.to(place), texts.to(place), pipeline, policy=chosen, cache_dir=cache_dir, precision=precision)


def family_of_towers(
    name: Any,
    boxes: str | Path | BoxSource | None,
    *,
    device: str,
    masks: str,
    policy: Mapping[str, Any] | None,
    precision: str,
    options: Mapping[str, Any],
    cache_dir: Path | None,
) -> TrainingFree:
    """Load towers by name and create a box source; see :meth:`Predictor.from_pretrained`."""
    known = [f.name for f in fields(FreeOptions)]
    for key in options:
        if key not in known:
            near = ", ".join(nearest(key, known)) or "none"
            raise UserError(f"Unknown option {key!r} of Predictor.from_pretrained. Nearest: {near}.")
    chosen = FreeOptions(**options)
    place = resolve_device(device)
    # Check policy and names first, then the box source, so that a wrong one fails before gigabytes are read.
    if isinstance(name, str | Path):
        check_encoder_name(name)
    changes = {"mask_mode": masks, **(policy or {})}
    ScoringPolicy.from_dict(changes)
    source = box_source(boxes, chosen.max_boxes)
    towers = open_towers(name, str(place))
    scoring = free_policy(towers).with_(**changes)
    return TrainingFree(towers, source, chosen, policy=scoring, cache_dir=cache_dir, precision=precision)


def open_towers(name: Any, device: str) -> Any:
    """Load towers from a name of public weights, a checkpoint file or folder, or a tower config; or move given ones."""
    if isinstance(name, Mapping):
        return load_encoder(name, device)
    if not isinstance(name, str | Path):
        check_members(name)
        return name.to(device).eval()
    return load_encoder({"checkpoint": str(name)}, device)
