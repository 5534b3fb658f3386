"""The region probe on files: classify ground-truth boxes with the towers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.class_splits import ov_coco_split
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.models.vocabulary import build_bank, resolve_names
from smartclip_det.probing.region_probe import probe_accuracy, probe_regions
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.devices import resolve_device


@dataclass(frozen=True)
class ProbeOptions:
    """Options of the region probe.

    Attributes:
        ann: COCO annotations.
        images: image folder.
        encoder: encoder config, see :func:`load_encoder`.
        split_file: JSON with ``base`` and ``novel`` lists of names.
        vocabulary: candidate class names, a file, or a known vocabulary; None: those of the split or annotation file.
        templates: a template set, or custom templates.
        views: ``crop``, ``dense``, ``mask``.
        dense_modes: modes of the last block for the dense map; each is probed.
        poolings: ``own``: cells of a region are weighted by their norm; ``unit``: equally; each is probed.
        mask_modes: mask modes; each is scored.
        text_norm: ``full``, or ``masked`` for towers trained with it.
        dense_size: side of the dense input in pixels; 0: the tower's input size.
        fit: how images are fitted to the dense input: ``pad`` or ``squash``.
        crop_context: crop side relative to the longer box side.
        device: see :func:`resolve_device`.
        out: JSON output; None: not written.
    """

    ann: str | Path
    images: str | Path
    encoder: Mapping[str, Any]
    split_file: Path | None = None
    vocabulary: str | Sequence[str] | None = None
    templates: str | Sequence[str] = "photo"
    views: Sequence[str] = ("crop", "dense")
    dense_modes: Sequence[str] = ("value",)
    poolings: Sequence[str] = ("own",)
    mask_modes: Sequence[str] = ("hard", "off")
    text_norm: str = "full"
    dense_size: int = 0
    fit: str = "pad"
    crop_context: float = 1.2
    device: str = "auto"
    out: Path | None = None


def probe(options: ProbeOptions) -> dict[str, dict[str, dict[str, float]]]:
    """Return accuracy by class group, view and mask mode.

    Raises:
        UserError: for missing or invalid files, and unknown names.
    """
    o = options
    truth = load_ground_truth(o.ann)
    groups = dict(zip(("base", "novel"), ov_coco_split(o.split_file)[:2], strict=True)) if o.split_file else {}
    names = resolve_names(o.vocabulary) if o.vocabulary else [n for g in groups.values() for n in g]
    names = names or list(truth.categories.values())
    towers = load_encoder(o.encoder, str(resolve_device(o.device)))
    encoder = RegionEncoder(towers, dense_size=o.dense_size, fit=o.fit, crop_context=o.crop_context)
    bank = build_bank(towers, names, templates=o.templates)
    regions = probe_regions(
        encoder, truth, str(o.images), names, views=o.views, dense_modes=o.dense_modes, poolings=o.poolings
    )
    policy = ScoringPolicy(text_norm=o.text_norm)
    accuracy = probe_accuracy(regions, bank, groups, o.mask_modes, policy)
    if o.out is not None:
        stamp = protocol_stamp(
            "region_probe",
            ann_sha256=file_hash(o.ann),
            checkpoint_hash=towers.checkpoint_hash,
            classes=len(names),
            boxes=len(regions.labels),
            templates=o.templates,
            dense_size=encoder.dense_size,
            fit=o.fit,
            poolings=o.poolings,
            crop_context=o.crop_context,
            policy=policy.to_dict(),
            unit="box, best of all classes",
        )
        write_results(o.out, stamp, accuracy)
    return accuracy
