"""Options of the training-free predictor, changed one at a time, on annotated images.

The predictor's own path (:meth:`Predictor.from_pretrained`) is measured with its defaults, with each change of
:func:`settings_of` that differs from them, and with a control. An image is encoded once for all
settings that share its region vectors. Boxes are those of the annotations, of a box source, or of the RPN of an
open-vocabulary detector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from smartclip_det.apis import Predictor
from smartclip_det.apis.box_sources import box_source
from smartclip_det.apis.families.loading import open_towers
from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import GroundTruth, load_ground_truth
from smartclip_det.formats.class_splits import ov_coco_split
from smartclip_det.formats.pictures import picture_path
from smartclip_det.metrics.coco import evaluate_tables, open_vocabulary_metrics
from smartclip_det.models.boxes import BoxSource, FileBoxes, Photograph, ScoredBoxes
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.devices import resolve_device

GROUND_TRUTH = "ground-truth"
DEFAULT, CONTROL = "default", "texts shuffled (control)"
#: Fractions of the towers' learned scale, as temperatures.
FRACTIONS = (0.25, 0.5, 0.75, 1.0, 3.0)
#: Metric -> values of all encoders, by setting.
Table = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class PredictorStudyOptions:
    """Options of the study.

    Attributes:
        encoder: towers, such as those of several seeds: names or files.
        ann: COCO annotations.
        images: image folder.
        split_file: JSON with base and novel names; None: OV-COCO's.
        boxes: ``ground-truth``, or a box source, see :func:`box_source`.
        config: open-vocabulary detector whose RPN proposes the boxes instead.
        checkpoint: weights of the detector.
        cfg_options: overrides of its config.
        max_boxes: boxes per image, best first.
        templates: prompt templates of the names, except where a setting changes them.
        only: settings to measure, by parts of their names; empty: all. Default and control are always measured.
        skip: leave out the first N images, such as those that options were chosen on.
        limit: use only the first N of the other images; 0: all.
        device: see :func:`resolve_device`.
        out: JSON output.
    """

    encoder: Sequence[str]
    ann: Path
    images: Path
    split_file: str | None = None
    boxes: str = GROUND_TRUTH
    config: str | None = None
    checkpoint: str | None = None
    cfg_options: Mapping[str, Any] | None = None
    max_boxes: int = 100
    templates: str | Sequence[str] = "photo"
    only: Sequence[str] = ()
    skip: int = 0
    limit: int = 0
    device: str = "auto"
    out: Path = Path("work_dirs/predictor_options.json")

    def __post_init__(self) -> None:
        if bool(self.config) != bool(self.checkpoint):
            raise UserError("Boxes of a detector's RPN need both --config and --checkpoint.")
        if self.config and self.boxes != GROUND_TRUTH:
            raise UserError(f"--boxes {self.boxes} and --config are two sources of boxes: give one of them.")


class RememberedBoxes:
    """A box source that asks another one once per image, by name."""

    def __init__(self, source: BoxSource) -> None:
        self.source, self._found = source, {}  # type: tuple[BoxSource, dict[str, ScoredBoxes]]

    def facts(self) -> dict[str, Any]:
        """Description of the source."""
        return self.source.facts()

    def to(self, device: torch.device) -> RememberedBoxes:
        """Move the source to a device."""
        self.source.to(device)
        return self

    def __call__(self, pictures: Sequence[Photograph]) -> list[ScoredBoxes]:
        """Boxes of each image, best first."""
        new = [p for p in pictures if p.name not in self._found]
        self._found |= zip((p.name for p in new), self.source(new) if new else [], strict=True)
        return [self._found[p.name] for p in pictures]


class RpnBoxes:
    """Class-agnostic boxes and objectness of an open-vocabulary detector."""

    def __init__(self, predictor: Predictor, max_boxes: int) -> None:
        self.predictor, self.max_boxes = predictor, max_boxes

    def facts(self) -> dict[str, Any]:
        """Describe the detector."""
        return {"source": "proposals", "max_boxes": self.max_boxes, "towers": self.predictor.protocol["towers"]}

    def to(self, device: torch.device) -> RpnBoxes:
        """No-op: the predictor is on its device."""
        return self

    def __call__(self, pictures: Sequence[Photograph]) -> list[ScoredBoxes]:
        """Boxes of each image, best first, on the CPU."""
        found = (self.predictor.proposals(self.max_boxes, image=self.predictor.encode_image(p)) for p in pictures)
        return [ScoredBoxes(torch.from_numpy(b), torch.from_numpy(s)) for b, s in found]


def settings_of(towers: Any) -> dict[str, dict[str, Any]]:
    """Options of :meth:`Predictor.from_pretrained` by the name of the change; the first is the default."""
    scale, side = float(towers.logit_scale.detach().exp()), towers.config.image_size
    policies: dict[str, dict[str, Any]] = {
        "activation softmax": {"activation": "softmax"},
        **{f"temperature {f:g} x learned scale": {"dense_temperature": f * scale} for f in FRACTIONS},
        **{f"background {b}": {"background": b} for b in ("zero", "text_ones")},
        "text norm masked": {"text_norm": "masked"},
        **{f"cell norm {n}": {"dense_norm": n} for n in ("pixel", "none")},
    }
    return {
        DEFAULT: {},
        CONTROL: {},
        **{name: {"policy": policy} for name, policy in policies.items()},
        **{f"masks {m}": {"masks": m} for m in ("off", "soft")},
        **{f"dense input {f} x": {"dense_size": f * side} for f in (1, 2, 3)},
        "regions crop": {"regions": "crop"},
        "regions both": {"regions": "both"},
        "regions both, context 2": {"regions": "both", "crop_context": 2.0},
        **{f"objectness power {p:g}": {"objectness_power": p} for p in (0.0, 1.0)},
        **{f"NMS IoU {t:g}": {"nms_iou": t} for t in (0.3, 0.7)},
        **{f"templates {t}": {"templates": t} for t in ("none", "photo")},
    }


def measure_predictor(options: PredictorStudyOptions) -> tuple[Table, Path]:
    """Measure every setting with every encoder, and write the results.

    Raises:
        UserError: for missing files, names that the annotations lack, and settings that do not exist.
    """
    o = options
    truth = chosen_images(load_ground_truth(o.ann), o.skip, o.limit)
    base, novel, split = ov_coco_split(o.split_file)
    truth.category_ids([*base, *novel])
    device = str(resolve_device(o.device))
    source = RememberedBoxes(_source(o, device))
    table: Table = {}
    hashes, defaults = [], []
    for name in o.encoder:
        towers = open_towers(name, device)
        hashes.append(towers.checkpoint_hash)
        study = _Study(o, truth, towers, source, (base, novel))
        settings = {k: v for k, v in study.settings().items() if _wanted(k, o.only)}
        for setting in settings:
            table.setdefault(setting, {})
        # Settings that share region vectors follow each other, so that one set of vectors is in memory.
        order = sorted(settings, key=lambda s: study.vectors_key(study.predictor(settings[s])))
        for setting in tqdm(order, desc=str(name), unit="setting"):
            for metric, value in study.measure(settings[setting], setting == CONTROL).items():
                table[setting].setdefault(metric, []).append(value)
        defaults.append(study.predictor({}).protocol)
    stamp = protocol_stamp(
        "predictor_options",
        ann_sha256=file_hash(o.ann),
        images=len(truth.data["images"]),
        skip=o.skip,
        split=split,
        checkpoint_hash=hashes,
        detector=o.checkpoint and {"config": o.config, "checkpoint_sha256": file_hash(o.checkpoint)},
        max_boxes=o.max_boxes,
        templates=o.templates,
        default=defaults,
        unit="one value per encoder",
    )
    return table, write_results(o.out, stamp, table)


def _source(o: PredictorStudyOptions, device: str) -> BoxSource:
    if o.config and o.checkpoint:
        detector = Predictor.from_config(o.config, o.checkpoint, device=device, cfg_options=o.cfg_options)
        return RpnBoxes(detector, o.max_boxes)
    source = FileBoxes(o.ann) if o.boxes == GROUND_TRUTH else box_source(o.boxes, o.max_boxes)
    assert source is not None  # a name was given
    return source


def _wanted(setting: str, only: Sequence[str]) -> bool:
    return not only or setting in (DEFAULT, CONTROL) or any(part in setting for part in only)


def chosen_images(truth: GroundTruth, skip: int, limit: int) -> GroundTruth:
    """Annotations of the images after the first ``skip``, at most ``limit`` of them (0: all).

    Raises:
        UserError: if no image is left.
    """
    every = truth.data["images"]
    images = every[skip : skip + limit if limit else None]
    if not images:
        raise UserError(f"--skip {skip} leaves none of the {len(every)} images of {truth.path}.")
    ids = {i["id"] for i in images}
    kept = [a for a in truth.data["annotations"] if a["image_id"] in ids]
    return replace(truth, data={**truth.data, "images": images, "annotations": kept})


class _Study:
    """One encoder; encoded images are kept for the settings that follow with the same region vectors."""

    def __init__(
        self,
        options: PredictorStudyOptions,
        truth: GroundTruth,
        towers: Any,
        source: BoxSource,
        split: tuple[list[str], list[str]],
    ) -> None:
        self.options, self.truth, self.towers, self.source, self.split = options, truth, towers, source, split
        self.paths = [picture_path(options.images, i, str(options.ann)) for i in truth.data["images"]]
        self._key, self._encoded = "", []  # type: tuple[str, list[Any]]

    def predictor(self, changes: Mapping[str, Any]) -> Predictor:
        """The predictor with changes to its defaults."""
        given = {"max_boxes": self.options.max_boxes, "templates": self.options.templates, **changes}
        return Predictor.from_pretrained(
            self.towers, boxes=self.source, device=self.options.device, use_cache=False, parser="rules", **given
        )

    def settings(self) -> dict[str, dict[str, Any]]:
        """Default and control, and the settings that differ from the default."""
        every = settings_of(self.towers)
        own = self._identity({})
        return {k: v for k, v in every.items() if k in (DEFAULT, CONTROL) or self._identity(v) != own}

    def _identity(self, changes: Mapping[str, Any]) -> tuple[Any, Any]:
        predictor = self.predictor(changes)
        return predictor.protocol, predictor.templates

    def measure(self, changes: Mapping[str, Any], shuffled: bool) -> dict[str, float]:
        """AP of base and novel names at IoU 0.5, and mAP of all, with all names in one vocabulary."""
        predictor, (base, novel) = self.predictor(changes), self.split
        bank = predictor.set_vocabulary([*base, *novel])
        bank = bank.text_shuffled() if shuffled else bank
        ids = {name: number for number, name in self.truth.categories.items()}
        results = []
        for info, image in zip(self.truth.data["images"], self._images(predictor), strict=True):
            results += predictor.detect(bank, image=image).to_coco(info["id"], ids)
        tables = evaluate_tables(self.truth, results, names=[*base, *novel])
        metrics = open_vocabulary_metrics(tables, base, novel)
        return {"base_ap50": metrics["base_ap50"], "novel_ap50": metrics["novel_ap50"], "bbox_mAP": tables.ap()}

    def vectors_key(self, predictor: Predictor) -> str:
        """What the region vectors of a predictor depend on."""
        facts = predictor.family.facts()
        used = ("regions", "max_boxes", "dense_size", "dense_mode", "crop_context")
        return str([facts[k] for k in used] + [predictor.policy.dense_norm])

    def _images(self, predictor: Predictor) -> list[Any]:
        if (key := self.vectors_key(predictor)) != self._key:
            self._encoded = []  # freed before the next images are encoded
            self._key, self._encoded = key, predictor.encode_images(self.paths, batch_size=16)
        return self._encoded


def rows_of(table: Table) -> list[tuple[str, dict[str, float], int]]:
    """Each setting with its means over encoders, and the number of encoders whose mAP is above that of the default."""
    own = np.array(table[DEFAULT]["bbox_mAP"])
    return [
        (name, {k: float(np.mean(v)) for k, v in row.items()}, int((np.array(row["bbox_mAP"]) > own).sum()))
        for name, row in table.items()
    ]
