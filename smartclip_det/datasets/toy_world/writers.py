"""Writing the toy world in standard formats: COCO, LVIS, the RefCOCO family, ShareGPT4V and COCO captions.

``images/SPLIT/NNNNNN.jpg``, ``annotations/instances_SPLIT.json`` (training: boxes of base shapes only),
``annotations/split.json``, ``annotations/lvis_{train,val}.json`` (colour-shape classes of base shapes),
``annotations/captions_SPLIT.json``, ``annotations/share_captions_SPLIT.json``, ``annotations/scenes_SPLIT.json``
(content of each image in words, without boxes: training draws captions from it, and tests use it to check which
captions are true), ``refs/refs(toy).p`` with ``refs/instances.json`` (single targets),
``refs/finetune_toy_SPLIT.json`` (MDETR layout, with plural and no-target sentences), ``world.json``.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smartclip_det.datasets.toy_world.language import (
    SceneExpression,
    expressions,
    long_caption,
    scene_facts,
    short_captions,
)
from smartclip_det.datasets.toy_world.scenes import SPLITS, Scene, ToyObject, ToyWorld
from smartclip_det.datasets.toy_world.shapes import BASE_SHAPES, COLOURS, NOVEL_SHAPES, SHAPES
from smartclip_det.formats.segmentations import encode_mask
from smartclip_det.utils.parallel import map_in_processes

#: First image id of each split, so that ids differ between splits.
_FIRST_ID = {split: (n + 1) * 1_000_000 for n, split in enumerate(SPLITS)}
#: LVIS: maximum number of training images of a rare class, and of a common one.
RARE, COMMON = 10, 100


class _Records:
    """All records of one split, collected scene by scene."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.images: list[dict[str, Any]] = []
        self.boxes: list[dict[str, Any]] = []
        self.pairs: list[tuple[str, str]] = []
        self.captions: list[dict[str, Any]] = []
        self.shared: list[dict[str, Any]] = []
        self.scenes: list[dict[str, Any]] = []
        self.expressions: list[tuple[int, SceneExpression]] = []

    def add(self, scene: Scene) -> None:
        """Add one scene; captions are drawn from the scene's own generator, after its content."""
        image_id = _FIRST_ID[self.split] + scene.index
        height, width = scene.image.shape[:2]
        name = f"{scene.index:06d}.jpg"
        self.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for o in scene.objects:
            self.boxes.append(_annotation(len(self.boxes) + 1, image_id, o))
            self.pairs.append(o.pair)
        self.scenes.append({"id": image_id, **scene_facts(scene)})
        long, short = long_caption(scene), short_captions(scene)
        self.shared.append(
            {
                "id": image_id,
                "image": f"images/{self.split}/{name}",
                "short": short,
                "conversations": [
                    {"from": "human", "value": "Describe the picture.\n<image>"},
                    {"from": "gpt", "value": long},
                ],
            }
        )
        self.captions += [
            {"id": len(self.captions) + n + 1, "image_id": image_id, "caption": c} for n, c in enumerate(short)
        ]
        self.expressions += [(image_id, e) for e in expressions(scene)]


def _annotation(number: int, image_id: int, o: ToyObject) -> dict[str, Any]:
    x1, y1, x2, y2 = o.box
    return {
        "id": number,
        "image_id": image_id,
        "category_id": SHAPES.index(o.shape) + 1,
        "iscrowd": 0,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(o.mask.sum()),
        "segmentation": encode_mask(o.mask),
        "attributes": {"colour": o.colour, "texture": o.texture, "size": o.size},
    }


def _draw(world: ToyWorld, folder: Path, split: str, index: int) -> Scene:
    """Draw one scene and write its image."""
    scene = world.scene(split, index)
    image = Image.fromarray(scene.image)
    path = folder / "images" / split / f"{index:06d}.jpg"
    (image.convert("L") if scene.grey else image).save(path, quality=95)
    return scene


def write_world(
    world: ToyWorld, folder: str | Path, *, progress: bool = True, workers: int | None = None
) -> dict[str, Any]:
    """Draw and write every split.

    Args:
        world: the world.
        folder: output folder; files of an earlier world are replaced.
        progress: show a progress bar.
        workers: number of processes; None: one per available core. The files do not depend on it.

    Returns:
        Content of ``world.json``: configuration, held-out pairs and counts.
    """
    from tqdm import tqdm

    folder = Path(folder)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    splits: dict[str, _Records] = {}
    for split in SPLITS:
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        splits[split] = records = _Records(split)
        draw = partial(_draw, world, folder, split)
        scenes = map_in_processes(draw, range(world.config.count(split)), workers)
        for scene in tqdm(
            scenes, total=world.config.count(split), desc=f"toy {split}", unit="image", disable=not progress
        ):
            records.add(scene)
        _write_detection(folder, records)
        _write_captions(folder, records)
    _write_lvis(folder, splits, world)
    _write_refs(folder, splits)
    _dump(folder / "annotations/split.json", {"base": list(BASE_SHAPES), "novel": list(NOVEL_SHAPES)})
    facts = {
        "config": asdict(world.config),
        "held_out": sorted(" ".join(p) for p in world.held_out_pairs),
        "images": {s: len(r.images) for s, r in splits.items()},
        "objects": {s: len(r.boxes) for s, r in splits.items()},
        "expressions": {s: dict(Counter(e.kind for _, e in r.expressions)) for s, r in splits.items()},
    }
    _dump(folder / "world.json", facts)
    return facts


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _categories() -> list[dict[str, Any]]:
    return [{"id": n, "name": s, "supercategory": "shape"} for n, s in enumerate(SHAPES, 1)]


def _write_detection(folder: Path, records: _Records) -> None:
    """COCO instances; the training file has no boxes of novel shapes."""
    base = {SHAPES.index(s) + 1 for s in BASE_SHAPES}
    kept = [a for a in records.boxes if records.split != "train" or a["category_id"] in base]
    data = {"images": records.images, "annotations": kept, "categories": _categories()}
    _dump(folder / f"annotations/instances_{records.split}.json", data)


def _write_captions(folder: Path, records: _Records) -> None:
    _dump(
        folder / f"annotations/captions_{records.split}.json",
        {"images": records.images, "annotations": records.captions},
    )
    _dump(folder / f"annotations/share_captions_{records.split}.json", records.shared)
    _dump(folder / f"annotations/scenes_{records.split}.json", records.scenes)


def _write_lvis(folder: Path, splits: dict[str, _Records], world: ToyWorld) -> None:
    """LVIS v1 layout over colour-shape classes of base shapes; frequencies by images of the training split."""
    pairs = [(c, s) for s in BASE_SHAPES for c in COLOURS]
    train = splits["train"]
    seen = {(a["image_id"], p) for a, p in zip(train.boxes, train.pairs, strict=True)}
    images, instances = Counter(p for _, p in seen), Counter(train.pairs)
    categories = []
    for n, pair in enumerate(pairs, 1):
        name = " ".join(pair)
        frequency = "r" if images[pair] <= RARE else "c" if images[pair] <= COMMON else "f"
        category = {"id": n, "name": name, "synset": f"{'_'.join(pair)}.n.01", "synonyms": [name], "def": f"a {name}"}
        counts = {"image_count": images[pair], "instance_count": instances[pair]}
        categories.append({**category, "frequency": frequency, **counts})
    index = {p: n for n, p in enumerate(pairs, 1)}
    for split in ("train", "val"):
        data = _federated(splits[split], index, np.random.default_rng([world.config.seed, 9, SPLITS.index(split)]))
        _dump(folder / f"annotations/lvis_{split}.json", {**data, "categories": categories})


def _federated(records: _Records, index: dict[tuple[str, str], int], rng: np.random.Generator) -> dict[str, Any]:
    """Federated annotations: some classes verified absent, some not exhaustively annotated."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for a, pair in zip(records.boxes, records.pairs, strict=True):
        if pair in index:
            plain = {k: v for k, v in a.items() if k not in ("attributes", "iscrowd")}
            by_image.setdefault(a["image_id"], []).append({**plain, "category_id": index[pair]})
    images, annotations = [], []
    for image in records.images:
        boxes = by_image.get(image["id"], [])
        present = sorted({a["category_id"] for a in boxes})
        absent = [int(c) for c in rng.permutation(len(index))[:12] + 1 if c not in present]
        partial: list[int] = []
        doubled = [c for c, n in Counter(a["category_id"] for a in boxes).items() if n > 1]
        if doubled:
            partial = doubled[:1]
            drop = next(a for a in boxes if a["category_id"] == partial[0])
            boxes = [a for a in boxes if a is not drop]
        url = f"toy://images/{records.split}/{image['file_name']}"
        plain = {k: v for k, v in image.items() if k != "file_name"}
        federated = {"neg_category_ids": absent, "not_exhaustive_category_ids": partial}
        images.append({**plain, "coco_url": url, **federated})
        annotations += boxes
    return {"images": images, "annotations": [{**a, "id": n} for n, a in enumerate(annotations, 1)]}


def _write_refs(folder: Path, splits: dict[str, _Records]) -> None:
    """Single targets in the layout of the refer toolbox, and all sentences in MDETR's."""
    refs: list[dict[str, Any]] = []
    instances: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    sentence_id = 0
    for split, records in splits.items():
        offset = len(instances["annotations"])
        moved = [{**a, "id": offset + a["id"]} for a in records.boxes]
        instances["images"] += [{**i, "file_name": f"{split}/{i['file_name']}"} for i in records.images]
        instances["annotations"] += moved
        by_image: dict[int, list[dict[str, Any]]] = {}
        for a in moved:
            by_image.setdefault(a["image_id"], []).append(a)
        mdetr: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        single: dict[int, list[dict[str, Any]]] = {}
        for image_id, e in records.expressions:
            targets = [by_image[image_id][t] for t in e.targets]
            _add_mdetr(mdetr, split, records, image_id, sentence_id, e, targets)
            if len(targets) == 1:
                sentence = {"raw": e.sentence, "sent": e.sentence, "tokens": e.sentence.split(), "sent_id": sentence_id}
                single.setdefault(targets[0]["id"], []).append(sentence)
            sentence_id += 1
        refs += _refs_of(single, {a["id"]: a for a in moved}, split, len(refs))
        _dump(folder / f"refs/finetune_toy_{split}.json", {**mdetr, "categories": _categories()})
    _dump(folder / "refs/instances.json", {**instances, "categories": _categories()})
    # Pickle protocol 2, as in the original files: every Python can read it, and it holds plain data only.
    (folder / "refs/refs(toy).p").write_bytes(pickle.dumps(refs, protocol=2))


def _refs_of(
    single: dict[int, list[dict[str, Any]]], boxes: dict[int, dict[str, Any]], split: str, first: int
) -> Iterable[dict[str, Any]]:
    for n, (annotation, sentences) in enumerate(single.items()):
        box = boxes[annotation]
        index = box["image_id"] - _FIRST_ID[split]
        name = f"{split}/{index:06d}_{annotation}.jpg"
        source = {"ann_id": annotation, "image_id": box["image_id"], "category_id": box["category_id"]}
        ids = [s["sent_id"] for s in sentences]
        yield {
            "ref_id": first + n,
            **source,
            "split": split,
            "file_name": name,
            "sentences": sentences,
            "sent_ids": ids,
        }


def _add_mdetr(
    data: dict[str, list[dict[str, Any]]],
    split: str,
    records: _Records,
    image_id: int,
    sentence_id: int,
    e: SceneExpression,
    targets: list[dict[str, Any]],
) -> None:
    image = records.images[image_id - _FIRST_ID[split]]
    full_span = [[0, len(e.sentence)]]
    entry = {"id": sentence_id, "original_id": image_id, "file_name": f"{split}/{image['file_name']}"}
    size = {"width": image["width"], "height": image["height"]}
    texts = {"caption": e.sentence, "dataset_name": "toy", "tokens_negative": full_span, "kind": e.kind}
    data["images"].append({**entry, **size, **texts})
    rows = [{**{k: t[k] for k in ("category_id", "bbox", "area", "iscrowd")}, "original_id": t["id"]} for t in targets]
    if not rows:
        # gRefCOCO's encoding of "no target".
        rows = [{"category_id": -1, "bbox": [0, 0, 0, 0], "area": -1, "iscrowd": -1, "empty": True, "original_id": -1}]
    for row in rows:
        data["annotations"].append(
            {"id": len(data["annotations"]) + 1, "image_id": sentence_id, "tokens_positive": full_span, **row}
        )
