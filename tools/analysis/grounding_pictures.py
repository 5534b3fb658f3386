#!/usr/bin/env python
"""A sheet of grounding answers: by default the worst misses, those that were answered wrongly with the highest score.

    python tools/analysis/grounding_pictures.py --ann refs.jsonl --pred pred.jsonl --images train2014
    python tools/analysis/grounding_pictures.py --ann refs.jsonl --pred pred.jsonl --images train2014 --pick random \
        --checkpoint smartclip_b16.pt --dense-size 640          # with a similarity map for each text of the tree

Each panel: the five best boxes numbered, a bar for each score, the target in green, the tree of the expression.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.predictions import load_grounding_predictions
from smartclip_det.formats.expressions.record import Expression, GroundedBoxes
from smartclip_det.metrics.referring import box_overlap
from smartclip_det.models.grounding.parsing import Entity, parse_expression
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.utils.cli import run_tool
from smartclip_det.utils.images import open_rgb
from smartclip_det.visualization.grounding import grounding_panel, sheet


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ann", required=True, help="expressions")
    parser.add_argument("--split", help="split of the expressions")
    parser.add_argument("--pred", required=True, help="JSON lines of predictions")
    parser.add_argument("--images", type=Path, required=True, help="folder of file_name")
    parser.add_argument("--pick", choices=["worst", "best", "random"], default="worst")
    parser.add_argument("--count", type=int, default=12, help="panels")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--checkpoint", help="towers, for similarity maps")
    parser.add_argument("--dense-size", type=int, default=0, help="side of their input; 0: the tower's own")
    parser.add_argument("--mask-mode", default="hard", help="of the maps")
    parser.add_argument("--seed", type=int, default=0, help="of --pick random")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/grounding.png"))
    return parser.parse_args()


def main() -> None:
    """Choose, draw, say what was drawn."""
    args = parse_args()
    if args.count < 1 or args.columns < 1:
        raise UserError("--count and --columns must be at least 1.")
    truth = load_expressions(args.ann, split=args.split)
    found = load_grounding_predictions(args.pred)
    chosen = choose(truth, found, args.pick, args.count, args.seed)
    encoder = None
    if args.checkpoint:
        encoder = RegionEncoder(load_encoder({"checkpoint": args.checkpoint}), dense_size=args.dense_size)
    panels = []
    for e, overlap in chosen:
        image, tree, mine = open_rgb(args.images / e.file_name), parse_expression(e.sentence), found[e.id]
        maps = None if encoder is None else similarity_maps(encoder, image, e.sentence, tree, args.mask_mode)
        told = f"IoU {overlap:.2f}, score {mine.scores[0]:.3f}" if mine.boxes else "answered: none"
        panels.append(grounding_panel(image, e.sentence, mine.boxes, mine.scores, targets=e.boxes, maps=maps,
                                      outline=tree.outline(), title=told))  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(panels, args.columns).save(args.out)
    print(f"{len(panels)} of {len(truth)} sentences ({args.pick}): {args.out}")


def choose(
    truth: list[Expression], found: dict[int | str, GroundedBoxes], pick: str, count: int, seed: int
) -> list[tuple[Expression, float]]:
    """Sentences with the overlap of their best box; a sentence without a target is missed by any box."""
    rows = []
    for e in truth:
        mine = found.get(e.id)
        if mine is None:
            continue
        first = mine.boxes[0] if mine.boxes else None
        overlap = max((box_overlap(first, b) for b in e.boxes), default=0.0) if first else float(not e.boxes)
        rows.append((e, overlap, mine.scores[0] if mine.scores else 0.0))
    if pick == "random":
        order = np.random.default_rng(seed).permutation(len(rows))
        rows = [rows[i] for i in order]
    else:
        rows = [r for r in rows if (r[1] < 0.5) == (pick == "worst")]
        rows.sort(key=lambda r: -r[2])
    if not rows:
        raise UserError(f"No sentence to show: none of the {len(found)} predictions is {pick}.")
    return [(e, overlap) for e, overlap, _ in rows[:count]]


@torch.no_grad()
def similarity_maps(
    encoder: RegionEncoder, image: Image.Image, sentence: str, tree: Entity, mask_mode: str
) -> dict[str, np.ndarray]:
    """``[h, w]`` masked cosine of the cells that show the image, for the sentence and each text of its tree."""
    texts = list(dict.fromkeys([sentence, *tree.texts()]))
    bank = build_bank(encoder.towers, texts, templates="none", progress=False)
    dense = encoder.dense_map(image)[0]
    height, width = dense.shape[1:]
    cosine = bank.cosine(dense.flatten(1).t().cpu(), ScoringPolicy(), mask_mode=mask_mode)
    longer = max(image.size)
    rows, columns = (max(1, round(n * side / longer)) for n, side in ((height, image.height), (width, image.width)))
    return {t: cosine[:, k].view(height, width)[:rows, :columns].numpy() for k, t in enumerate(texts)}


if __name__ == "__main__":
    run_tool(main)
