"""A sheet of grounding predictions: boxes, scores, targets, the parse of the expression, similarity maps."""

from __future__ import annotations

from dataclasses import dataclass
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
from smartclip_det.utils.devices import resolve_device
from smartclip_det.utils.images import open_rgb
from smartclip_det.visualization.grounding import grounding_panel, sheet


@dataclass(frozen=True)
class GroundingPicturesOptions:
    """Options of the sheet.

    Attributes:
        ann: expressions.
        pred: JSON lines of predictions.
        images: image folder.
        split: split of the expressions.
        pick: ``worst``, ``best`` or ``random``.
        count: number of panels.
        columns: columns of the sheet.
        encoder: towers, for similarity maps.
        dense_size: side of the dense input in pixels; 0: the tower's input size.
        mask_mode: mask mode of the maps.
        seed: seed of ``random``.
        device: see :func:`resolve_device`.
        out: output image.
    """

    ann: str
    pred: str
    images: Path
    split: str | None = None
    pick: str = "worst"
    count: int = 12
    columns: int = 4
    encoder: str | None = None
    dense_size: int = 0
    mask_mode: str = "hard"
    seed: int = 0
    device: str = "auto"
    out: Path = Path("work_dirs/grounding.png")


def draw_groundings(task: GroundingPicturesOptions) -> tuple[int, int]:
    """Choose sentences and draw the sheet.

    Returns:
        Number of panels, and number of sentences they were chosen from.

    Raises:
        UserError: if no sentence matches ``pick``.
    """
    if task.count < 1 or task.columns < 1:
        raise UserError("--count and --columns must be at least 1.")
    truth = load_expressions(task.ann, split=task.split)
    predictions = load_grounding_predictions(task.pred)
    chosen = choose(truth, predictions, task.pick, task.count, task.seed)
    encoder = None
    if task.encoder:
        towers = load_encoder({"checkpoint": task.encoder}, str(resolve_device(task.device)))
        encoder = RegionEncoder(towers, dense_size=task.dense_size)
    panels = []
    for e, overlap in chosen:
        image, tree, prediction = open_rgb(task.images / e.file_name), parse_expression(e.sentence), predictions[e.id]
        maps = None if encoder is None else similarity_maps(encoder, image, e.sentence, tree, task.mask_mode)
        title = f"IoU {overlap:.2f}, score {prediction.scores[0]:.3f}" if prediction.boxes else "no box predicted"
        panels.append(
            grounding_panel(
                image,
                e.sentence,
                prediction.boxes,
                prediction.scores,
                targets=e.boxes,
                maps=maps,
                outline=tree.outline(),
                title=title,
            )
        )
    task.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(panels, task.columns).save(task.out)
    return len(panels), len(truth)


def choose(
    truth: list[Expression], predictions: dict[int | str, GroundedBoxes], pick: str, count: int, seed: int
) -> list[tuple[Expression, float]]:
    """Choose sentences, each with the IoU of its best box; without a target, 1 if no box is predicted, else 0."""
    rows = []
    for e in truth:
        prediction = predictions.get(e.id)
        if prediction is None:
            continue
        first = prediction.boxes[0] if prediction.boxes else None
        overlap = max((box_overlap(first, b) for b in e.boxes), default=0.0) if first else float(not e.boxes)
        rows.append((e, overlap, prediction.scores[0] if prediction.scores else 0.0))
    if pick == "random":
        order = np.random.default_rng(seed).permutation(len(rows))
        rows = [rows[i] for i in order]
    else:
        rows = [r for r in rows if (r[1] < 0.5) == (pick == "worst")]
        rows.sort(key=lambda r: -r[2])
    if not rows:
        raise UserError(f"No sentence to draw: none of the {len(predictions)} predictions matches --pick {pick}.")
    return [(e, overlap) for e, overlap, _ in rows[:count]]


@torch.no_grad()
def similarity_maps(
    encoder: RegionEncoder, image: Image.Image, sentence: str, tree: Entity, mask_mode: str
) -> dict[str, np.ndarray]:
    """``[h, w]`` masked cosine of the cells that cover the image, for the sentence and each text of its parse."""
    texts = list(dict.fromkeys([sentence, *tree.texts()]))
    bank = build_bank(encoder.towers, texts, templates="none", progress=False)
    dense = encoder.dense_map(image)[0]
    height, width = dense.shape[1:]
    cosine = bank.cosine(dense.flatten(1).t().cpu(), ScoringPolicy(), mask_mode=mask_mode)
    longer = max(image.size)
    rows, columns = (max(1, round(n * side / longer)) for n, side in ((height, image.height), (width, image.width)))
    return {t: cosine[:, k].view(height, width)[:rows, :columns].numpy() for k, t in enumerate(texts)}
