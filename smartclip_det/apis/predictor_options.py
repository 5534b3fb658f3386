"""Build the predictor selected by command-line options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smartclip_det.apis.predictor import Predictor
from smartclip_det.core.errors import UserError


@dataclass(frozen=True)
class PredictorOptions:
    """A detector, or towers and a box source.

    Attributes:
        config: config of an open-vocabulary detector; None: towers alone, without training.
        checkpoint: weights of the detector; None: random heads.
        encoder: towers, a file or a name of public weights; overrides ``towers.checkpoint`` of ``config``.
        boxes: box source without ``config`` (see :meth:`Predictor.from_pretrained`).
        device: see :func:`resolve_device`.
        cfg_options: overrides of the config.
        templates: prompts of class names.
    """

    config: str | None = None
    checkpoint: str | None = None
    encoder: str | None = None
    boxes: str | None = None
    device: str = "auto"
    cfg_options: Mapping[str, Any] | None = None
    templates: str | Sequence[str] = "photo"


def load_predictor(options: PredictorOptions) -> Predictor:
    """Load the detector or trained grounding head of the config, or towers with a box source.

    Raises:
        UserError: if neither a config nor towers are given, or options of both are mixed.
    """
    changes = dict(options.cfg_options or {})
    if options.config:
        if options.boxes:
            raise UserError(
                "--boxes only applies to towers alone; a detector predicts its own boxes. Drop --boxes or --config."
            )
        changes |= {"towers.checkpoint": options.encoder} if options.encoder else {}
        return Predictor.from_config(
            options.config,
            options.checkpoint,
            device=options.device,
            cfg_options=changes,
            templates=options.templates,
        )
    if not options.encoder:
        raise UserError(
            "No model given: use --encoder NAME (towers alone, without training), or --config CONFIG with "
            "--checkpoint of a detector."
        )
    if options.checkpoint or changes:
        raise UserError("--checkpoint and --cfg-options require --config; for towers alone use --encoder NAME.")
    return Predictor.from_pretrained(
        options.encoder,
        boxes=options.boxes or "torchvision",
        device=options.device,
        templates=options.templates,
    )
