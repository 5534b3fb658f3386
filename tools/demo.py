#!/usr/bin/env python
"""Find phrases in photographs: a picture and a JSON for each image.

    python tools/demo.py street.jpg --text "red mug" "left dog" --config CONFIG --checkpoint epoch_3.pth
    python tools/demo.py photos/*.jpg --vocabulary names.txt --config CONFIG --checkpoint epoch_3.pth
    python tools/demo.py street.jpg --ground --text "the dog left of the bench" --config CONFIG --checkpoint W.pth
    python tools/demo.py street.jpg --heatmap --text "a red mug" --config CONFIG --checkpoint W.pth

One phrase is one argument, or one line of the vocabulary file. A score is the probability of the phrase against
background alone: it does not change with the other phrases. With --ground the config may be of a trained grounding
head, whose scores are the probability that a box is meant.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import DictAction
from PIL import Image

from smartclip_det.apis import Detections, ReferringPredictor, SmartCLIPPredictor
from smartclip_det.apis.inputs import load_image
from smartclip_det.core.errors import UserError
from smartclip_det.engine.config import load_config
from smartclip_det.models.grounding.parsing import parse_expression
from smartclip_det.models.vocabulary import read_vocabulary
from smartclip_det.protocols.stamp import file_hash, protocol_stamp
from smartclip_det.utils.cli import run_tool
from smartclip_det.visualization import draw_boxes, draw_heatmap, draw_mask_strip, grounding_panel, sheet

Predictor = SmartCLIPPredictor | ReferringPredictor
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="image files or folders")
    parser.add_argument("--text", nargs="+", default=[], help="phrases, one per argument")
    parser.add_argument("--vocabulary", type=Path, help=".txt with one name a line, or .json list")
    parser.add_argument("--config", required=True, help="config of an open-vocabulary detector or a grounding head")
    parser.add_argument("--checkpoint", help="its weights; without, heads are random")
    parser.add_argument("--ground", action="store_true", help="phrases are referring expressions; a panel for each")
    parser.add_argument("--heatmap", action="store_true", help="also draw similarity maps and masks")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score drawn (default 0.5)")
    parser.add_argument("--top-k", type=int, default=1, help="boxes per expression with --ground")
    parser.add_argument("--out-dir", type=Path, default=Path("work_dirs/demo"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="overrides of the config")
    return parser.parse_args()


def main() -> int:
    """Run every image through one predictor."""
    args = parse_args()
    texts = [*args.text, *(read_vocabulary(args.vocabulary) if args.vocabulary else [])]
    if not texts:
        raise UserError("Nothing to look for: give --text PHRASE... or --vocabulary FILE.")
    images = find_images(args.images)
    check_outputs(images, args.out_dir)
    predictor = load_predictor(args)
    print(f"device: {predictor.device}, {predictor.protocol}")
    if not args.checkpoint:
        print("note: no --checkpoint: the heads are random and the boxes mean nothing.")
    args.out_dir.mkdir(parents=True, exist_ok=True)
    stamp = protocol_stamp("demo", config=str(args.config), **predictor.protocol,
                           checkpoint_sha256=file_hash(args.checkpoint) if args.checkpoint else None)  # fmt: skip
    bad: list[str] = []
    for path in images:
        try:
            show_image(predictor, path, texts, args, stamp)
        except UserError as error:
            # One bad file costs no other one its answer; a single image is no folder run.
            bad.append(str(error))
            print(f"{path}: left out: {error}", file=sys.stderr)
    if bad:
        print(f"error: {len(bad)} of {len(images)} images could not be used.", file=sys.stderr)
    return 2 if bad else 0


def load_predictor(args: argparse.Namespace) -> Predictor:
    """The detector of the config, or its trained grounding head."""
    if load_config(args.config, args.cfg_options).model.type != "SmartCLIPReferring":
        return SmartCLIPPredictor.from_config(
            args.config, args.checkpoint, device=args.device, cfg_options=args.cfg_options
        )
    if not args.ground:
        raise UserError(f"{args.config} is of a grounding head, which reads expressions: say --ground.")
    return ReferringPredictor.from_config(
        args.config, args.checkpoint, device=args.device, cfg_options=args.cfg_options
    )


def find_images(paths: list[Path]) -> list[Path]:
    """Files as given, and the images of folders, in name order."""
    out: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise UserError(f"No images in {path} ({', '.join(SUFFIXES)}).")
            out += found
        elif path.is_file():
            out.append(path)
        else:
            raise UserError(f"No image or folder at {path}.")
    return out


def check_outputs(images: list[Path], out_dir: Path) -> None:
    """Refuse to write two answers to one file, or an answer over a photograph."""
    for stem, count in Counter(p.stem for p in images).items():
        if count > 1:
            raise UserError(
                f"{count} images are called {stem}: their outputs would overwrite each other. Run them apart."
            )
    for path in images:
        if path.resolve() == (out_dir / f"{path.stem}.png").resolve():
            raise UserError(f"The picture of {path} would overwrite it. Give another --out-dir.")


def show_image(predictor: Predictor, path: Path, texts: list[str], args: argparse.Namespace,
               stamp: dict[str, Any]) -> None:  # fmt: skip
    """Encode one image, answer, write picture and JSON, and say where."""
    start = time.perf_counter()
    predictor.set_image(path)
    encoded = time.perf_counter()
    everything = answer(predictor, texts, args)
    seconds = {"image": encoded - start, "query": time.perf_counter() - encoded}
    found = everything if args.ground else everything.above(args.threshold)
    picture = Image.fromarray(load_image(path))
    base = args.out_dir / path.stem
    out_picture, out_json = (base.with_name(f"{base.name}{end}") for end in (".png", ".json"))
    drawn = draw_boxes(picture, found.boxes, found.label_names, texts, found.scores)
    drawn.save(out_picture)
    written = [out_picture, out_json]
    if args.heatmap:
        written += heatmaps(predictor, picture, texts, base)
    if args.ground:
        written.append(base.with_name(f"{base.name}_ground.png"))
        sheet([panel(predictor, picture, t, args.threshold) for t in texts]).save(written[-1])
    content = {"protocol": stamp, "image": str(path), "texts": texts, "seconds": seconds, "detections": found.to_list()}
    out_json.write_text(json.dumps(content, indent=2), encoding="utf-8")
    print(f"{path}: {len(found)} boxes ({seconds['image']:.2f} s image, {seconds['query']:.2f} s texts)")
    if not len(found):
        best = ", ".join(f"{n} {s:.3f}" for n, s in zip(everything.label_names[:5], everything.scores[:5], strict=True))
        print(f"  nothing reaches --threshold {args.threshold}; the best: {best or 'none'}")
    print(f"  written: {', '.join(map(str, written))}")


def answer(predictor: Predictor, texts: list[str], args: argparse.Namespace) -> Detections:
    """All detections, or the boxes of each expression."""
    if not args.ground:
        return predictor.detect(texts)
    parts = predictor.ground(texts, top_k=args.top_k)
    return Detections(
        np.concatenate([p.boxes for p in parts]), np.concatenate([p.scores for p in parts]),
        np.concatenate([p.labels + i for i, p in enumerate(parts)]), tuple(texts),
    )  # fmt: skip


def panel(predictor: Predictor, picture: Image.Image, expression: str, threshold: float) -> Image.Image:
    """Five boxes with score bars, the expression's tree, and a similarity map for each of its texts."""
    found, tree = predictor.ground(expression, top_k=5), parse_expression(expression)
    maps = {t: predictor.explain(t).similarity for t in dict.fromkeys([expression, *tree.texts()])}
    none = not len(found) or found.scores[0] < threshold
    return grounding_panel(picture, expression, found.boxes.tolist(), found.scores.tolist(), outline=tree.outline(),
                           maps=maps, title=f"none reaches {threshold}" if none else "")  # fmt: skip


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


if __name__ == "__main__":
    run_tool(main)
