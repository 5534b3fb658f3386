"""Checks to run before a long training: does a config build, does a checkpoint reproduce its published numbers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers.source import tower_file
from smartclip_det.protocols.published import published_values, verdict
from smartclip_det.protocols.stamp import protocol_stamp, write_results


def check_config(path: str, cfg_options: Mapping[str, Any] | None = None) -> str:
    """Build the model of a config and, if it trains, the optimizer.

    Returns:
        A one-line description of what was built.

    Raises:
        UserError: for a config that cannot be read, and keys that no class accepts.
    """
    from smartclip_det import register_detection  # noqa: F401, I001 (registers all modules; reports missing packages first)
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, init_default_scope

    from smartclip_det.engine.config import fit_norm_layers, load_config

    config = load_config(path, cfg_options)
    fit_norm_layers(config, distributed=False)
    init_default_scope(config.get("default_scope", "mmdet"))
    try:
        model = MODELS.build(config.model)
        if config.get("optim_wrapper"):
            build_optim_wrapper(model, config.optim_wrapper)
    except TypeError as error:
        raise UserError(f"{path}: {error}") from error
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    summary = f"{trained:,} of {total:,} parameters trained" if config.get("optim_wrapper") else "for testing only"
    return f"{path}: builds {type(model).__name__}, {summary}."


@dataclass(frozen=True)
class VerifyOptions:
    """Options of checkpoint verification.

    Attributes:
        model: name of the published model.
        checkpoint: weights: a file or a name.
        sets: set name -> folder.
        partial: accept incomplete sets: a smoke test, not a verification.
        names: imagenet: class names of the folders.
        workers: data loader workers.
        device: see :func:`resolve_device`.
        out: JSON output; per-set results go to the same folder.
    """

    model: str
    checkpoint: str
    sets: Mapping[str, Path]
    partial: bool = False
    names: str | None = None
    workers: int = 4
    device: str = "auto"
    out: Path = Path("work_dirs/verify_checkpoint.json")


def verify_checkpoint(options: VerifyOptions) -> tuple[bool, Sequence[Mapping[str, Any]]]:
    """Measure every set with plain scoring, as published, and compare with the published numbers.

    Returns:
        Whether all are within tolerance, and one row per published number.

    Raises:
        UserError: for a set that cannot be measured.
    """
    options = replace(options, checkpoint=tower_file(options.checkpoint))
    anchors = published_values(options.model, list(options.sets))
    measured = {name: _measure(name, folder, options) for name, folder in options.sets.items()}
    rows = [verdict(a, measured[a.set]["metrics"][a.metric]) for a in anchors]
    passed = all(r["passed"] for r in rows) and not options.partial
    stamp = protocol_stamp(
        "verify_checkpoint",
        model=options.model,
        partial=options.partial,
        sets={n: m["protocol"] for n, m in measured.items()},
    )
    write_results(options.out, stamp, {"passed": passed}, anchors=rows)
    return passed, rows


def _measure(name: str, folder: Path, options: VerifyOptions) -> dict[str, Any]:
    """Measure one set through the public functions and return its result file."""
    from smartclip_det.apis.classification import ClassifyOptions, classify
    from smartclip_det.apis.retrieval import RetrieveOptions, retrieve
    from smartclip_det.formats.json_files import read_json

    out = options.out.parent / f"verify_{options.model}_{name}.json"
    towers = {"checkpoint": options.checkpoint}
    try:
        if name == "imagenet":
            classify(
                ClassifyOptions(
                    folder, towers, names=options.names, workers=options.workers, device=options.device, out=out
                )
            )
        else:
            retrieve(
                RetrieveOptions(
                    name,
                    folder,
                    towers,
                    partial=options.partial,
                    workers=options.workers,
                    device=options.device,
                    out=out,
                )
            )
    except UserError as error:
        raise UserError(f"{name} could not be measured: {error}") from error
    result: dict[str, Any] = read_json(out, "result file")
    return result
