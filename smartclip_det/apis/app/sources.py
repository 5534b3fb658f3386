"""The predictor behind the page, and its sample images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.apis.inputs import find_images
from smartclip_det.apis.predictor_options import PredictorOptions
from smartclip_det.apis.toy_run import TOY_DETECTOR, TOY_TEMPLATE, find_toy_run
from smartclip_det.core.errors import UserError
from smartclip_det.formats.json_files import read_json

#: Maximum number of images in the gallery.
SAMPLES = 12


@dataclass(frozen=True)
class AppOptions:
    """Predictor and gallery of the page. Without ``config`` and ``encoder``, the detector of a toy run.

    Attributes:
        config: open-vocabulary detector or grounding head.
        checkpoint: weights of ``config``.
        encoder: file or name of public weights; overrides ``towers.checkpoint`` of ``config``.
        boxes: box source without ``config`` (see :meth:`Predictor.from_pretrained`).
        templates: class-name prompts; None: ``photo``, or the training template of the toy detector.
        device: see :func:`resolve_device`.
        toy: folder of a toy run; None: the nearest one, see :func:`find_toy_run`.
        data: folder of the toy world; None: that of the run.
        samples: images or folders for the gallery; if empty, the toy detector gets scenes of the toy world.
    """

    config: str | None = None
    checkpoint: str | None = None
    encoder: str | None = None
    boxes: str | None = None
    templates: str | Sequence[str] | None = None
    device: str = "auto"
    toy: Path | None = None
    data: Path | None = None
    samples: Sequence[Path] = ()


@dataclass(frozen=True)
class Sample:
    """An image of the gallery and phrases that match it."""

    path: Path
    phrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A resolved predictor source.

    Attributes:
        predictor: options of the predictor.
        samples: images of the gallery.
    """

    predictor: PredictorOptions
    samples: tuple[Sample, ...] = ()


def source_of(options: AppOptions) -> Source:
    """Resolve options to a predictor and a gallery.

    Raises:
        UserError: if nothing is given and there is no toy run, for conflicting options, and for missing samples.
    """
    own = options.config or options.encoder
    if not own and (options.checkpoint or options.boxes):
        raise UserError("--checkpoint requires --config, and --boxes requires --encoder.")
    if not own:
        return toy_source(options)
    predictor = PredictorOptions(
        config=options.config,
        checkpoint=options.checkpoint,
        encoder=options.encoder,
        boxes=options.boxes,
        device=options.device,
        templates=options.templates or "photo",
    )
    return Source(predictor, sample_files(options.samples))


def toy_source(options: AppOptions) -> Source:
    """The detector trained by ``make toy``, and validation scenes of its world.

    Raises:
        UserError: if there is no finished run, with the ways to choose another predictor.
    """
    try:
        run = find_toy_run(options.toy, data=options.data)
        weights, towers = run.checkpoint("detector"), run.checkpoint("smartclip")
    except UserError as error:
        raise UserError(
            f"{error} Or choose a predictor: --config CONFIG --checkpoint FILE, or --encoder NAME."
        ) from error
    predictor = PredictorOptions(
        config=TOY_DETECTOR,
        checkpoint=weights,
        encoder=towers,
        device=options.device,
        templates=options.templates or (TOY_TEMPLATE,),
    )
    return Source(predictor, sample_files(options.samples) or toy_scenes(run.data))


def sample_files(paths: Sequence[Path]) -> tuple[Sample, ...]:
    """The first images of files and folders.

    Raises:
        UserError: for a missing path, or a folder without images.
    """
    return tuple(Sample(p) for p in find_images(paths)[0][:SAMPLES]) if paths else ()


def toy_scenes(data: Path, count: int = SAMPLES) -> tuple[Sample, ...]:
    """Validation scenes with two or more objects, and phrases for these objects; empty if there is no toy world."""
    files = [data / "annotations" / f"{name}_val.json" for name in ("scenes", "instances")]
    if not all(f.is_file() for f in files):
        return ()
    scenes: list[dict[str, Any]] = read_json(files[0], "scene file")
    names = {i["id"]: i["file_name"] for i in read_json(files[1], "annotations")["images"]}
    several = [s for s in scenes if len(s["objects"]) > 1 and not s["grey"]][:count]
    return tuple(
        Sample(
            data / "images/val" / names[s["id"]],
            tuple(dict.fromkeys(f"{o['colour']} {o['shape']}" for o in s["objects"])),
        )
        for s in several
    )
