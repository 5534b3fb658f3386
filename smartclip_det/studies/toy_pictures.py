"""Figures of the toy report, drawn from the prediction files, so that tables and figures show the same results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch.nn.functional import avg_pool2d

from smartclip_det.apis import Predictor
from smartclip_det.apis.toy_run import TOY_TEMPLATE
from smartclip_det.core.similarity import masked_cosine
from smartclip_det.datasets.toy_world.shapes import COLOURS
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.predictions import load_grounding_predictions
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.formats.json_files import read_json
from smartclip_det.metrics.referring import box_overlap, single_targets
from smartclip_det.models.towers.source import load_towers
from smartclip_det.probing.mask_statistics import jaccard
from smartclip_det.studies.toy_conclusions import MaskFacts
from smartclip_det.studies.toy_measures import IMAGE_SIDE
from smartclip_det.utils.images import fit_square, open_rgb, pixels
from smartclip_det.visualization.draw import colour_of, draw_heatmap, draw_mask_strip
from smartclip_det.visualization.idea import IdeaText, draw_idea
from smartclip_det.visualization.lettering import font

#: Width of a tile in pixels; the page shows it at half size, for high-resolution screens.
TILE = 640
LETTERS = 30
RIGHT, WRONG, TARGET = (0, 135, 60), (200, 30, 40), (40, 40, 40)
MASK_TEXTS = (
    "a star",
    "a red star",
    "a blue star",
    "a heart",
    "a red heart",
    "a blue heart",
    "a red star and a blue heart",
)
#: Names of absent things, added to the vocabulary.
ELSEWHERE = ("pink ring", "green bolt")
Picture = tuple[Image.Image, str]
Box = Sequence[float]
#: (box in image pixels, label, colour).
Mark = tuple[Box, str, tuple[int, int, int]]


class ToyPictures:
    """Draw validation scenes; they are selected by outcome, as stated in the captions."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.data, self.facts = folder, Path(facts["data"]), facts
        self.towers = load_towers({"checkpoint": facts["towers"]["smartclip"]}).eval()
        options = {"towers.checkpoint": facts["towers"]["smartclip"], "data_root": f"{facts['data']}/"}
        self.predictor = Predictor.from_config(
            facts["config"],
            facts["detector"] or None,
            cfg_options=options,
            templates=[TOY_TEMPLATE],
            use_cache=False,
            device="cpu",
        )
        self.truth = load_ground_truth(self.data / "annotations/instances_val.json")
        split = read_json(self.data / "annotations/split.json", "split file")
        self.base, self.novel = split["base"], split["novel"]
        self.objects: dict[Any, list[dict[str, Any]]] = {}
        for a in self.truth.data["annotations"]:
            self.objects.setdefault(a["image_id"], []).append(a)

    def image(self, info: Mapping[str, Any]) -> Image.Image:
        """Open a validation image."""
        return open_rgb(self.data / "images/val" / info["file_name"])

    def boxes(self, image_id: Any) -> list[tuple[Box, str]]:
        """Return annotated boxes and names of an image."""
        return [(corners(a["bbox"]), self.truth.categories[a["category_id"]]) for a in self.objects.get(image_id, [])]

    @torch.no_grad()
    def idea(self) -> Image.Image:
        """Draw the first scene with two objects of different colour and shape, and both of their texts."""
        for info in self.truth.data["images"]:
            described = [
                (a["attributes"]["colour"], self.truth.categories[a["category_id"]])
                for a in self.objects.get(info["id"], [])
            ]
            if len(described) == 2 and described[0][0] != described[1][0] and described[0][1] != described[1][1]:
                break
        image = self.image(info)
        square = pixels(fit_square(image, IMAGE_SIDE, "pad"))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in self.towers.image_statistics())
        vector = self.towers.encode_image(((square.float() / 255 - mean) / std)[None])
        texts = [f"{'an' if c[0] in 'aeiou' else 'a'} {c} {s}" for c, s in described]
        bank = self.towers.encode_text(texts)
        masked, plain = (masked_cosine(vector, bank.embeds, m, text_norm="masked")[0] for m in (bank.masks, None))
        return draw_idea(
            image,
            vector[0].numpy(),
            [
                IdeaText(t, bank.embeds[n].numpy(), bank.masks[n].numpy(), float(masked[n]), float(plain[n]))
                for n, t in enumerate(texts)
            ],
        )

    def scenes(self, count: int = 6) -> list[Picture]:
        """Return scenes with their first short caption and the long one."""
        records = read_json(self.data / "annotations/share_captions_val.json", "caption file")[:count]
        return [
            (enlarge(open_rgb(self.data / r["image"])), f"“{r['short'][0]}” — {r['conversations'][1]['value']}")
            for r in records
        ]

    def masks(self) -> Image.Image:
        """Draw the masks of a few texts."""
        bank = self.towers.encode_text(list(MASK_TEXTS))
        return draw_mask_strip(bank.masks.numpy(), list(MASK_TEXTS), cell=3, height=20)

    def mask_facts(self) -> MaskFacts:
        """Compute mask statistics of all colour-and-shape phrases."""
        pairs = [(c, s) for c in COLOURS for s in (*self.base, *self.novel)]
        phrases = [f"{'an' if c[0] in 'aeiou' else 'a'} {c} {s}" for c, s in pairs]
        masks = self.towers.encode_text(phrases).masks
        first, second = torch.triu_indices(len(pairs), len(pairs), 1)
        overlap = jaccard(masks[first], masks[second])
        colour, shape = (
            torch.tensor([values.index(p[k]) for p in pairs])
            for k, values in enumerate((list(COLOURS), [*self.base, *self.novel]))
        )
        alike = [v[first] == v[second] for v in (shape, colour)]
        neither = ~alike[0] & ~alike[1]
        return MaskFacts(masks.mean(dim=1).tolist(), *(float(overlap[m].mean()) for m in (*alike, neither)))

    def heatmaps(self, count: int = 6) -> list[Picture]:
        """Draw similarity maps for a novel shape in scenes with several objects.

        Cells are pooled with their neighbours, as boxes pool them: single cells of the background have small weights
        and random directions.
        """
        out: list[Picture] = []
        shown: set[str] = set()
        for info in self.truth.data["images"]:
            names = [n for _, n in self.boxes(info["id"])]
            novel = [n for n in names if n in self.novel and n not in shown]
            if len(names) >= 2 and novel and len(out) < count:
                image, text = self.image(info), f"{'an' if novel[0][0] in 'aeiou' else 'a'} {novel[0]}"
                encoded = self.predictor.encode_image(image)
                pooled = replace(encoded, dense=avg_pool2d(encoded.dense[None], 3, stride=1, padding=1)[0])
                explained = self.predictor.explain(text, image=pooled)
                shown.add(novel[0])
                out.append(
                    (
                        draw_heatmap(enlarge(image), explained.similarity),
                        f"Masked cosine of 3 x 3 patches with “{text}”; red is highest",
                    )
                )
        return out

    def detections(self, each: int = 3) -> list[Picture]:
        """Draw scenes with novel shapes: ``each`` with all objects detected, then ``each`` with errors."""
        predictions: dict[Any, list[dict[str, Any]]] = {}
        for r in read_json(self.folder / "detection_hard.json", "predictions"):
            predictions.setdefault(r["image_id"], []).append(r)
        shown: dict[bool, list[Picture]] = {True: [], False: []}
        for info in self.truth.data["images"]:
            annotated = self.boxes(info["id"])
            if not any(n in self.novel for _, n in annotated):
                continue
            best = sorted(predictions.get(info["id"], []), key=lambda r: -r["score"])[: len(annotated)]
            marks, missed = match_and_mark(
                [(corners(r["bbox"]), self.truth.categories[r["category_id"]]) for r in best], annotated
            )
            good = not missed and all(colour == RIGHT for _, _, colour in marks)
            if len(shown[good]) < each:
                wanted = ", ".join(f"{n}{' (novel)' if n in self.novel else ''}" for _, n in annotated)
                lost = [(box, "", TARGET) for box, _ in missed]
                shown[good].append((draw_marks(self.image(info), [*lost, *marks]), f"Objects: {wanted}."))
        return shown[True] + shown[False]

    def vocabulary_swap(self, count: int = 3) -> list[Picture]:
        """Draw detections of colours with shapes, then of colours, on the same scenes with three objects."""
        several = [i for i in self.truth.data["images"] if len(self.objects.get(i["id"], [])) == 3][:count]
        colours = [f"{c} shape" for c in COLOURS]
        return [
            *(self._three_best(i, [*self._described(i["id"]), *ELSEWHERE]) for i in several),
            *(self._three_best(i, colours) for i in several),
        ]

    def _described(self, image_id: Any) -> list[str]:
        """Objects of an image as colour and shape."""
        rows = zip(self.objects[image_id], self.boxes(image_id), strict=True)
        return [f"{a['attributes']['colour']} {name}" for a, (_, name) in rows]

    def _three_best(self, info: Mapping[str, Any], vocabulary: Sequence[str]) -> Picture:
        names, image = list(dict.fromkeys(vocabulary)), self.image(info)
        self.predictor.set_image(image)
        detections = self.predictor.detect(names, max_detections=20).nms(0.5, across_names=True).top(3)
        marks = [
            (b, n, colour_of(names.index(n)))
            for b, n in zip(detections.boxes.tolist(), detections.label_names, strict=True)
        ]
        return draw_marks(image, marks), f"Vocabulary: {', '.join(names)}. Three best detections."

    def groundings(self, file: str, each: int = 3) -> list[Picture]:
        """Draw phrases in scenes with several objects from a prediction file, correct ones first."""
        predictions = load_grounding_predictions(self.folder / file)
        shown: dict[bool, list[Picture]] = {True: [], False: []}
        seen: set[Any] = set()
        for e in self._phrases(predictions):
            if e.image_id in seen:
                continue
            box = predictions[e.id].boxes[0] if predictions[e.id].boxes else None
            hit = box is not None and box_overlap(box, e.boxes[0]) >= 0.5
            if len(shown[hit]) < each:
                seen.add(e.image_id)
                marks: list[Mark] = [] if hit else [(e.boxes[0], "", TARGET)]
                marks += [] if box is None else [(box, "", RIGHT if hit else WRONG)]
                shown[hit].append((draw_marks(open_rgb(self.data / "images" / e.file_name), marks), f"“{e.sentence}”"))
        return shown[True] + shown[False]

    def _phrases(self, predictions: Mapping[int | str, Any]) -> Iterator[Expression]:
        everything = single_targets(load_expressions(self.data / "refs/finetune_toy_val.json"))[0]
        return (e for e in everything if e.id in predictions and len(self.objects.get(int(e.image_id), [])) > 1)


def corners(box: Box) -> list[float]:
    """Convert a COCO box (xywh) to xyxy."""
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def match_and_mark(
    predicted: Iterable[tuple[Box, str]], annotated: Sequence[tuple[Box, str]]
) -> tuple[list[Mark], list[tuple[Box, str]]]:
    """Return marks of the predicted boxes, green if they match an annotated box of that name, and the missed boxes.

    Args:
        predicted: predicted boxes and names, best first; each annotated box is matched once.
        annotated: annotated boxes and names.
    """
    left, marks = list(annotated), []
    for box, name in predicted:
        hit = next((a for a in left if a[1] == name and box_overlap(a[0], box) >= 0.5), None)
        if hit:
            left.remove(hit)
        marks.append((box, name, RIGHT if hit else WRONG))
    return marks, left


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarge to the width of a tile, with sharp pixels."""
    return image.resize((TILE, round(image.height * TILE / image.width)), Image.Resampling.NEAREST)


def draw_marks(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """Draw boxes on an enlarged image; each label is above its box, or below it to avoid another label."""
    canvas, scale = enlarge(image), TILE / image.width
    pen = ImageDraw.Draw(canvas)
    for box, _, colour in marks:
        pen.rectangle([v * scale for v in box], outline=colour, width=3 if colour == TARGET else 6)
    taken: list[tuple[float, float, float, float]] = []
    for box, label, colour in marks:
        if label:
            face = font(LETTERS, label)
            width, height = face.getlength(label) + 14, LETTERS + 8.0
            x = min(max(0.0, box[0] * scale), TILE - width)
            tops = [min(max(0.0, y), canvas.height - height) for y in (box[1] * scale - height, box[3] * scale)]
            y = next((t for t in tops if not any(_meet((x, t, x + width, t + height), o) for o in taken)), tops[0])
            taken.append((x, y, x + width, y + height))
            pen.rectangle(taken[-1], fill=colour)
            pen.text((x + 7, y), label, fill=(255, 255, 255), font=face)
    return canvas


def _meet(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
