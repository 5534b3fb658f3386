"""Phrases found in photographs: for each image a picture and a JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smartclip_det.apis.detections import Detections
from smartclip_det.apis.inputs import check_threshold, find_images, load_image
from smartclip_det.apis.predictor import Predictor
from smartclip_det.apis.predictor_options import PredictorOptions, load_predictor
from smartclip_det.core.errors import UserError
from smartclip_det.formats.thresholds import read_thresholds
from smartclip_det.protocols.stamp import file_hash, protocol_stamp
from smartclip_det.visualization import draw_heatmap, draw_mask_strip, grounding_panel, sheet


@dataclass(frozen=True)
class DemoOptions:
    """What is looked for, by what.

    Attributes:
        images: files and folders.
        texts: phrases; with ``ground`` referring expressions.
        config: of an open-vocabulary detector or a grounding head; None: towers alone, without training.
        checkpoint: its weights; None: heads are random.
        encoder: towers: with ``config`` its ``towers.checkpoint``, without one a name of public weights or a file.
        boxes: without ``config``: where boxes come from (see :meth:`Predictor.from_pretrained`).
        ground: phrases are referring expressions; a panel is drawn for each.
        heatmap: also draw similarity maps and masks.
        threshold: lowest score drawn and written; None: 0.5, and 0 with ``ground``, whose best box is shown.
        thresholds: file of one by class, in place of ``threshold``.
        top_k: boxes for each expression with ``ground``.
        out: folder that is written to.
        device: see :func:`resolve_device`.
        cfg_options: overrides of the config.
    """

    images: Sequence[Path]
    texts: Sequence[str]
    config: str | None = None
    checkpoint: str | None = None
    encoder: str | None = None
    boxes: str | None = None
    ground: bool = False
    heatmap: bool = False
    threshold: float | None = None
    thresholds: Path | None = None
    top_k: int = 1
    out: Path = Path("work_dirs/demo")
    device: str = "auto"
    cfg_options: Mapping[str, Any] | None = None


def demo(options: DemoOptions) -> list[str]:
    """Run every image through one predictor; what is found is printed, and written to ``out``.

    Returns:
        Why images were left out, one reason for each.

    Raises:
        UserError: when there is nothing to look for or to look at, or outputs would overwrite something.
    """
    if not options.texts:
        raise UserError("Nothing to look for: give --texts PHRASE... or --vocabulary NAMES.")
    least_by_name(options)
    images, passed_over = find_images(options.images)
    check_outputs(images, options.out)
    predictor = load_predictor(
        PredictorOptions(
            config=options.config,
            checkpoint=options.checkpoint,
            encoder=options.encoder,
            boxes=options.boxes,
            device=options.device,
            cfg_options=options.cfg_options,
        )
    )
    told = ", ".join(f"{k} {v}" for k, v in _told(predictor.protocol).items())
    print(f"device: {predictor.device}; {told}")
    if options.config and not options.checkpoint:
        print("note: no --checkpoint: the heads are random and the boxes mean nothing.")
    options.out.mkdir(parents=True, exist_ok=True)
    stamp = protocol_stamp(
        "demo",
        config=options.config,
        **predictor.protocol,
        checkpoint_sha256=file_hash(options.checkpoint) if options.checkpoint else None,
    )
    bad: list[str] = []
    for path in images:
        try:
            show_image(predictor, path, options, stamp)
        except UserError as error:
            # One bad file costs no other one its answer; a single image is no folder run.
            bad.append(str(error))
            print(f"{path}: left out: {error}", file=sys.stderr)
    for line in passed_over:
        print(f"note: {line}", file=sys.stderr)
    if bad:
        print(f"error: {len(bad)} of {len(images)} images could not be used.", file=sys.stderr)
    return bad


def _told(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The few facts of a stamp that a reader wants at once; the whole one is in each JSON."""
    policy = protocol.get("policy", {})
    return {
        "towers": protocol.get("towers"),
        "masks": policy.get("mask_mode", protocol.get("mask_mode")),
        **({"scores": policy["activation"]} if policy else {}),
    }


def check_outputs(images: Sequence[Path], out: Path) -> None:
    """Refuse to write two answers to one file, or an answer over a photograph."""
    for stem, count in Counter(p.stem for p in images).items():
        if count > 1:
            raise UserError(
                f"{count} images are called {stem}: their outputs would overwrite each other. Run them apart."
            )
    for path in images:
        if path.resolve() == (out / f"{path.stem}.png").resolve():
            raise UserError(f"The picture of {path} would overwrite it. Give another --out.")


def show_image(predictor: Predictor, path: Path, options: DemoOptions, stamp: Mapping[str, Any]) -> None:
    """Encode one image, answer, write picture and JSON, and say where."""
    texts = list(options.texts)
    start = time.perf_counter()
    predictor.set_image(path)
    encoded = time.perf_counter()
    everything = answer(predictor, texts, options)
    seconds = {"image": encoded - start, "query": time.perf_counter() - encoded}
    threshold = lowest_score(options)
    found = everything.above(least_by_name(options) or threshold)
    picture = Image.fromarray(load_image(path))
    base = options.out / path.stem
    out_picture, out_json = (base.with_name(f"{base.name}{end}") for end in (".png", ".json"))
    found.plot(picture).save(out_picture)
    written = [out_picture, out_json]
    if options.heatmap:
        written += heatmaps(predictor, picture, texts, base)
    if options.ground:
        written.append(base.with_name(f"{base.name}_ground.png"))
        sheet([panel(predictor, picture, t, threshold) for t in texts]).save(written[-1])
    content = {"protocol": stamp, "image": str(path), "texts": texts, "seconds": seconds, "detections": found.to_list()}
    out_json.write_text(json.dumps(content, indent=2), encoding="utf-8")
    frames = frames_of(path)
    print(
        f"{path}: {len(found)} boxes ({seconds['image']:.2f} s image, {seconds['query']:.2f} s texts)"
        + (f"; the first of its {frames} frames" if frames > 1 else "")
    )
    if not len(found):
        best = ", ".join(f"{n} {s:.3f}" for n, s in zip(everything.label_names[:5], everything.scores[:5], strict=True))
        told = f"--threshold {threshold}" if options.thresholds is None else str(options.thresholds)
        print(f"  nothing reaches {told}; the best: {best or 'none'}")
    print(f"  written: {', '.join(map(str, written))}")


def least_by_name(options: DemoOptions) -> dict[str, float] | None:
    """Thresholds of a file, by phrase."""
    if options.thresholds is None:
        return None
    if options.ground or options.threshold is not None:
        raise UserError("--thresholds is of classes: leave --ground and --threshold out.")
    return read_thresholds(options.thresholds).of(options.texts, str(options.thresholds))


def lowest_score(options: DemoOptions) -> float:
    """The threshold in force."""
    if options.threshold is None:
        return 0.0 if options.ground else 0.5
    return check_threshold(options.threshold)


def frames_of(path: Path) -> int:
    """Pictures in a file: an animation or a document of pages has several."""
    with Image.open(path) as opened:
        return getattr(opened, "n_frames", 1)


def answer(predictor: Predictor, texts: list[str], options: DemoOptions) -> Detections:
    """All detections, or the boxes of each expression."""
    if not options.ground:
        return predictor.detect(texts)
    parts = predictor.ground(texts, top_k=options.top_k)
    return Detections(
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.labels + i for i, p in enumerate(parts)]),
        tuple(texts),
    )


def panel(predictor: Predictor, picture: Image.Image, expression: str, threshold: float) -> Image.Image:
    """Five boxes with score bars, and what took part: the tree that was read, a similarity map of each of its texts.

    A trained head reads the whole expression: no tree.
    """
    found = predictor.ground(expression, top_k=5)
    tree = predictor.tree(expression) if predictor.reads_trees else None
    maps = {t: predictor.explain(t).similarity for t in ([expression] if tree is None else tree.texts())}
    none = not len(found) or found.scores[0] < threshold
    return grounding_panel(
        picture,
        expression,
        found.boxes.tolist(),
        found.scores.tolist(),
        outline=tree.outline() if tree else (),
        maps=maps,
        title=f"none reaches {threshold}" if none else "",
    )


def heatmaps(predictor: Predictor, picture: Image.Image, texts: list[str], out: Path) -> list[Path]:
    """A similarity map per text, and all masks in one strip."""
    paths, masks = [], []
    for i, text in enumerate(texts):
        explained = predictor.explain(text)
        masks.append(explained.mask)
        paths.append(out.with_name(f"{out.name}_map{i}.png"))
        draw_heatmap(picture, explained.similarity).save(paths[-1])
    paths.append(out.with_name(f"{out.name}_masks.png"))
    draw_mask_strip(np.stack(masks), texts).save(paths[-1])
    return paths
