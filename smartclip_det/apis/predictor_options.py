"""The predictor that options of a verb ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smartclip_det.apis.predictor import Predictor
from smartclip_det.core.errors import UserError


@dataclass(frozen=True)
class PredictorOptions:
    """A detector, or towers and boxes.

    Attributes:
        config: of an open-vocabulary detector; None: towers alone, without training.
        checkpoint: its weights; None: heads are random.
        encoder: towers: with ``config`` its ``towers.checkpoint``, without one a name of public weights or a file.
        boxes: without ``config``: where boxes come from (see :meth:`Predictor.from_pretrained`).
        device: see :func:`resolve_device`.
        cfg_options: overrides of the config.
    """

    config: str | None = None
    checkpoint: str | None = None
    encoder: str | None = None
    boxes: str | None = None
    device: str = "auto"
    cfg_options: Mapping[str, Any] | None = None


def load_predictor(options: PredictorOptions) -> Predictor:
    """The detector of the config, its trained grounding head, or towers and boxes.

    Raises:
        UserError: where neither a config nor towers are given, or options of one beside the other.
    """
    changes = dict(options.cfg_options or {})
    if options.config:
        if options.boxes:
            raise UserError("--boxes is for towers alone: leave --config out, or --boxes; a detector finds its own.")
        changes |= {"towers.checkpoint": options.encoder} if options.encoder else {}
        return Predictor.from_config(options.config, options.checkpoint, device=options.device, cfg_options=changes)
    if not options.encoder:
        raise UserError(
            "Nothing to look with: give --encoder NAME (towers alone, without training), or --config CONFIG and "
            "--checkpoint of a detector."
        )
    if options.checkpoint or changes:
        raise UserError("--checkpoint and --cfg-options go with --config; for towers alone give --encoder NAME.")
    return Predictor.from_pretrained(options.encoder, boxes=options.boxes or "torchvision", device=options.device)
