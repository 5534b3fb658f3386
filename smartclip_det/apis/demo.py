"""The demo: detect phrases in images; writes an annotated image and a JSON for each input."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Options of the demo.

    Attributes:
        images: image files and folders.
        texts: phrases; referring expressions with ``ground``.
        predictor: what answers.
        ground: treat phrases as referring expressions; one panel each.
        heatmap: also draw similarity maps and masks.
        threshold: minimum score drawn and written; None: 0.5, or 0 with ``ground``, so that the best box is shown.
        thresholds: per-class thresholds file, replaces ``threshold``.
        top_k: boxes per expression with ``ground``.
        out: output folder.
    """

    images: Sequence[Path]
    texts: Sequence[str]
    predictor: PredictorOptions = field(default_factory=PredictorOptions)
    ground: bool = False
    heatmap: bool = False
    threshold: float | None = None
    thresholds: Path | None = None
    top_k: int = 1
    out: Path = Path("work_dirs/demo")


def demo(options: DemoOptions) -> list[str]:
    """Run the predictor on every image; results are printed and written to ``out``.

    Returns:
        One error message per skipped image.

    Raises:
        UserError: without texts or images, or if outputs would overwrite a file.
    """
    if not options.texts:
        raise UserError("No phrases given: use --texts PHRASE... or --vocabulary NAMES.")
    class_thresholds(options)
    images, notes = find_images(options.images)
    check_outputs(images, options.out)
    given = options.predictor
    predictor = load_predictor(given)
    summary = ", ".join(f"{k} {v}" for k, v in _summary(predictor.protocol).items())
    print(f"device: {predictor.device}; {summary}")
    if given.config and not given.checkpoint:
        print("note: no --checkpoint: heads are random and boxes are meaningless.")
    options.out.mkdir(parents=True, exist_ok=True)
    stamp = protocol_stamp(
        "demo",
        config=given.config,
        **predictor.protocol,
        checkpoint_sha256=file_hash(given.checkpoint) if given.checkpoint else None,
    )
    bad: list[str] = []
    for path in images:
        try:
            show_image(predictor, path, options, stamp)
        except UserError as error:
            # One unreadable file must not stop the others.
            bad.append(str(error))
            print(f"{path}: skipped: {error}", file=sys.stderr)
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    if bad:
        print(f"error: {len(bad)} of {len(images)} images could not be processed.", file=sys.stderr)
    return bad


def _summary(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Select the facts of a stamp that are printed; each JSON has the full stamp."""
    policy = protocol.get("policy", {})
    return {
        "towers": protocol.get("towers"),
        "masks": policy.get("mask_mode", protocol.get("mask_mode")),
        **({"scores": policy["activation"]} if policy else {}),
    }


def check_outputs(images: Sequence[Path], out: Path) -> None:
    """Reject runs that would write two outputs to one file, or overwrite an input image."""
    for stem, count in Counter(p.stem for p in images).items():
        if count > 1:
            raise UserError(
                f"{count} images are named {stem}; their outputs would overwrite each other. Run them separately."
            )
    for path in images:
        if path.resolve() == (out / f"{path.stem}.png").resolve():
            raise UserError(f"The output of {path} would overwrite it. Choose another --out.")


def show_image(predictor: Predictor, path: Path, options: DemoOptions, stamp: Mapping[str, Any]) -> None:
    """Process one image: encode, query, write image and JSON, print the paths."""
    texts = list(options.texts)
    start = time.perf_counter()
    predictor.set_image(path)
    encoded = time.perf_counter()
    detections = answer(predictor, texts, ground=options.ground, top_k=options.top_k)
    seconds = {"image": encoded - start, "query": time.perf_counter() - encoded}
    threshold = score_threshold(options)
    kept = detections.above(class_thresholds(options) or threshold)
    picture = Image.fromarray(load_image(path))
    base = options.out / path.stem
    out_picture, out_json = (base.with_name(f"{base.name}{end}") for end in (".png", ".json"))
    kept.plot(picture).save(out_picture)
    written = [out_picture, out_json]
    if options.heatmap:
        written += heatmaps(predictor, picture, texts, base)
    if options.ground:
        written.append(base.with_name(f"{base.name}_ground.png"))
        sheet([panel(predictor, picture, t, threshold) for t in texts]).save(written[-1])
    content = {"protocol": stamp, "image": str(path), "texts": texts, "seconds": seconds, "detections": kept.to_list()}
    out_json.write_text(json.dumps(content, indent=2), encoding="utf-8")
    frames = frames_of(path)
    found = f"{len(kept)} box{'' if len(kept) == 1 else 'es'}"
    print(
        f"{path}: {found} ({seconds['image']:.2f} s image, {seconds['query']:.2f} s texts)"
        + (f"; the first of its {frames} frames" if frames > 1 else "")
    )
    if not len(kept):
        best = ", ".join(f"{n} {s:.3f}" for n, s in zip(detections.label_names[:5], detections.scores[:5], strict=True))
        limit = f"--threshold {threshold}" if options.thresholds is None else str(options.thresholds)
        print(f"  no detection reaches {limit}; best: {best or 'none'}")
    print(f"  written: {', '.join(map(str, written))}")


def class_thresholds(options: DemoOptions) -> dict[str, float] | None:
    """Read the thresholds file, if any: phrase -> threshold."""
    if options.thresholds is None:
        return None
    if options.ground or options.threshold is not None:
        raise UserError("--thresholds cannot be combined with --ground or --threshold.")
    return read_thresholds(options.thresholds).of(options.texts, str(options.thresholds))


def score_threshold(options: DemoOptions) -> float:
    """Return the score threshold, given or default."""
    if options.threshold is None:
        return 0.0 if options.ground else 0.5
    return check_threshold(options.threshold)


def frames_of(path: Path) -> int:
    """Count the frames in a file; animations and multi-page documents have several."""
    with Image.open(path) as opened:
        return getattr(opened, "n_frames", 1)


def answer(
    predictor: Predictor, texts: Sequence[str], *, ground: bool = False, top_k: int = 1, image: Any = None
) -> Detections:
    """All detections of phrases, or with ``ground`` the boxes of each expression.

    Args:
        predictor: what answers.
        texts: phrases or expressions.
        ground: texts are referring expressions.
        top_k: boxes of an expression.
        image: what :meth:`Predictor.encode_image` returned; default: the image that this thread set.
    """
    if not ground:
        return predictor.detect(texts, image=image)
    parts = predictor.ground(list(texts), top_k=top_k, image=image)
    return Detections(
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.labels + i for i, p in enumerate(parts)]),
        tuple(texts),
    )


def panel(predictor: Predictor, picture: Image.Image, expression: str, threshold: float) -> Image.Image:
    """Draw the five best boxes with score bars, the parse of the expression, and a similarity map per text in it.

    A trained head reads the whole expression, so there is no parse.
    """
    detections = predictor.ground(expression, top_k=5)
    tree = predictor.tree(expression) if predictor.reads_trees else None
    maps = {t: predictor.explain(t).similarity for t in ([expression] if tree is None else tree.texts())}
    none = not len(detections) or detections.scores[0] < threshold
    return grounding_panel(
        picture,
        expression,
        detections.boxes.tolist(),
        detections.scores.tolist(),
        outline=tree.outline() if tree else (),
        maps=maps,
        title=f"no box reaches {threshold}" if none else "",
    )


def heatmaps(predictor: Predictor, picture: Image.Image, texts: list[str], out: Path) -> list[Path]:
    """Draw a similarity map per text, and a strip with all masks."""
    paths, masks = [], []
    for i, text in enumerate(texts):
        explained = predictor.explain(text)
        masks.append(explained.mask)
        paths.append(out.with_name(f"{out.name}_map{i}.png"))
        draw_heatmap(picture, explained.similarity).save(paths[-1])
    paths.append(out.with_name(f"{out.name}_masks.png"))
    draw_mask_strip(np.stack(masks), texts).save(paths[-1])
    return paths
