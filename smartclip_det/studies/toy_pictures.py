"""The pictures of the toy report, drawn with the trained detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smartclip_det.apis import Predictor
from smartclip_det.apis.answers import Detections
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.json_files import read_json
from smartclip_det.metrics.referring import box_overlap
from smartclip_det.utils.images import open_rgb
from smartclip_det.visualization.draw import draw_boxes, draw_heatmap, draw_mask_strip

TEMPLATES = ["{article} {}"]
SCALE = 3
MASK_TEXTS = (
    *("a heart", "a red heart", "a red star", "a star", "a blue star", "a blue hexagon", "a hexagon"),
    *("a large star", "a striped star", "a heart and a star"),
)
Picture = tuple[Image.Image, str]


class ToyPictures:
    """Draws on the first validation scenes; what is shown is chosen by outcome, and the captions say so."""

    def __init__(self, config: str, detector: str, towers: str, data: str) -> None:
        self.data = Path(data)
        self.predictor = Predictor.from_config(
            config, detector, cfg_options={"towers.checkpoint": towers, "data_root": f"{data}/"}, templates=TEMPLATES,
            use_cache=False, device="cpu",
        )  # fmt: skip
        self.truth = load_ground_truth(self.data / "annotations/instances_val.json")
        split = read_json(self.data / "annotations/split.json", "split file")
        self.base, self.novel = split["base"], split["novel"]
        self.boxes: dict[int, list[tuple[list[float], str]]] = {}
        for a in self.truth.data["annotations"]:
            x, y, w, h = a["bbox"]
            self.boxes.setdefault(a["image_id"], []).append(
                ([x, y, x + w, y + h], self.truth.categories[a["category_id"]])
            )

    def image(self, info: dict[str, Any]) -> Image.Image:
        """A validation image."""
        return open_rgb(self.data / "images/val" / info["file_name"])

    def scenes(self, count: int = 8) -> list[Picture]:
        """Scenes with their first short caption and, below, the long one."""
        records = read_json(self.data / "annotations/share_captions_val.json", "caption file")[:count]
        return [
            (enlarge(open_rgb(self.data / r["image"])), f"“{r['short'][0]}” — {r['conversations'][1]['value']}")
            for r in records
        ]

    def masks(self) -> Image.Image:
        """Masks of a few texts."""
        bank = self.predictor.encoder.encode_text(list(MASK_TEXTS))
        return draw_mask_strip(bank.masks.numpy(), list(MASK_TEXTS), cell=8)

    def detections(self, each: int = 4, search: int = 200) -> list[Picture]:
        """Scenes with novel shapes: ``each`` where all objects were found, then ``each`` where something went wrong."""
        names = [*self.base, *self.novel]
        self.predictor.set_vocabulary(names, seen=self.base)
        good: list[Picture] = []
        bad: list[Picture] = []
        for info in self.truth.data["images"][:search]:
            annotated = self.boxes.get(info["id"], [])
            if not any(n in self.novel for _, n in annotated):
                continue
            image = self.image(info)
            self.predictor.set_image(image)
            found = self.predictor.detect(max_detections=max(1, len(annotated)))
            right = sum(
                any(n == m and box_overlap(b, c) >= 0.5 for c, m in annotated)
                for b, n in zip(found.boxes.tolist(), found.label_names, strict=True)
            )
            wanted = ", ".join(f"{n}{' (novel)' if n in self.novel else ''}" for _, n in annotated)
            target = good if right == len(annotated) == len(found) else bad
            if len(target) < each:
                said = "All found" if target is good else f"{right} of {len(annotated)} right"
                target.append((drawn(image, found, annotated), f"{said}. Annotated: {wanted}."))
            if len(good) == len(bad) == each:
                break
        return good + bad

    def vocabulary_swap(self, count: int = 4) -> list[Picture]:
        """Colours instead of shapes, then colours and shapes, on the same scenes."""
        out: list[Picture] = []
        several = [i for i in self.truth.data["images"] if len(self.boxes.get(i["id"], [])) == 3][: count // 2]
        for names in (["red shape", "blue shape", "green shape", "yellow shape", "purple shape", "orange shape"],
                      ["red star", "blue hexagon", "small circle", "large shape", "black arrow"]):  # fmt: skip
            for info in several:
                image = self.image(info)
                self.predictor.set_vocabulary(names)
                self.predictor.set_image(image)
                found = self.predictor.detect(max_detections=3)
                out.append((drawn(image, found, []), f"Asked for: {', '.join(names)}. The three best."))
        return out

    def groundings(self, each: int = 3, search: int = 150) -> list[Picture]:
        """Expressions that were grounded rightly, then wrongly; and where the text's similarity lies."""
        found: dict[bool, list[Picture]] = {True: [], False: []}
        expressions = [e for e in load_expressions(self.data / "refs/finetune_toy_val.json") if len(e.boxes) == 1]
        seen: set[Any] = set()
        for e in expressions[: search * 4]:
            several = len(self.boxes.get(int(e.image_id), [])) > 1
            if not several or e.image_id in seen:
                continue
            image = open_rgb(self.data / "images" / e.file_name)
            self.predictor.set_image(image)
            best = self.predictor.ground(e.sentence)
            hit = len(best) > 0 and box_overlap(best.boxes[0].tolist(), e.boxes[0]) >= 0.5
            if len(found[hit]) < 2 * each:
                seen.add(e.image_id)
                said = "right" if hit else "wrong"
                found[hit].append((drawn(image, best, []), f"“{e.sentence}”: {said}"))
                heat = draw_heatmap(enlarge(image), self.predictor.explain(e.sentence).similarity)
                found[hit].append((heat, "masked cosine of each patch with it"))
            if all(len(v) == 2 * each for v in found.values()):
                break
        return found[True] + found[False]


def enlarge(image: Image.Image) -> Image.Image:
    """Three times the size, pixels kept."""
    return image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.NEAREST)


def drawn(image: Image.Image, found: Detections, annotated: list[tuple[list[float], str]]) -> Image.Image:
    """Found boxes with names and scores, annotated ones thin and green below them."""
    from PIL import ImageDraw

    canvas = enlarge(image)
    pen = ImageDraw.Draw(canvas)
    for box, _ in annotated:
        pen.rectangle([v * SCALE for v in box], outline=(40, 170, 60), width=1)
    boxes = (np.asarray(found.boxes) * SCALE).tolist()
    return draw_boxes(canvas, boxes, found.label_names, list(found.names), found.scores.tolist())
