"""A finished toy run in its file formats, with random predictions around the annotated boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.metrics.referring import single_targets
from smartclip_det.studies.toy import GROUNDING_MODES, HEAD_MODES, TESTS
from smartclip_det.studies.toy_steps import DETECTOR

MODES = ("hard", "off", "random", "shuffled")


def stamped(path: Path, metrics: dict) -> None:
    path.write_text(json.dumps({"protocol": {"versions": {"torch": "2"}}, "metrics": metrics}))


def answer(rng, box, share):
    """The box, or with probability 1 - share another one."""
    x1, y1, x2, y2 = box
    if rng.random() > share:
        x1, y1 = rng.uniform(0, 40, 2)
        x2, y2 = x1 + rng.uniform(10, 40), y1 + rng.uniform(10, 40)
    return [float(v) for v in (x1, y1, x2, y2)]


def write_run(folder: Path, data: Path, towers: dict[str, str], detector: str, seed: int = 0) -> None:
    """Write all files that ``study toy-report`` reads; hard masks are right more often than the others."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shares = {"hard": 0.9, "off": 0.7, "shuffled": 0.6, "random": 0.4, "text_shuffled": 0.1, "random_tower": 0.5}
    for name in ("clip", "smartclip"):
        metrics = {
            f"{k}_{m}": 0.5
            for k in ("map_shape", "map_colour_shape", "map_colour_shape_held_out", "map_caption_partial")
            for m in MODES
        }
        stamped(folder / f"{name}.metrics.json", metrics)
        logs = folder / name / "20260101_000000/vis_data"
        logs.mkdir(parents=True, exist_ok=True)
        rows = [{"step": s, "loss_sidm": 5 / s, "loss_dism": 4 / s} for s in range(1, 9)]
        (logs / "scalars.json").write_text("\n".join(map(json.dumps, rows)))
    for name in ("clip", "smartclip", "random"):
        views = {
            v: dict.fromkeys(MODES, 0.1 if name == "random" else 0.6) for v in ("crop", "dense_value", "mask_value")
        }
        stamped(folder / f"probe_{name}.json", {"base": views, "novel": views, "all": views})
    truth = json.loads((data / "annotations/instances_val.json").read_text())
    for test in TESTS:
        rows = []
        for a in truth["annotations"]:
            x, y, w, h = a["bbox"]
            x1, y1, x2, y2 = answer(rng, (x, y, x + w, y + h), shares[test])
            rows.append(
                {
                    "image_id": a["image_id"],
                    "category_id": a["category_id"],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(rng.random()),
                }
            )
        (folder / f"detection_{test}.json").write_text(json.dumps(rows))
        ap = dict.fromkeys(("base_ap50", "novel_ap50", "all_ap50"), shares[test])
        stamped(folder / f"detection_{test}.metrics.json", ap)
    sentences = load_expressions(data / "refs/finetune_toy_val.json")
    single = single_targets(sentences)[0]
    numbers = {"acc50": 0.5, "acc75": 0.25, "acc90": 0.1, "miou": 0.5}
    told = {**dict.fromkeys(GROUNDING_MODES, numbers), "chance": {"acc50": 0.3}, "best_possible": {"acc50": 0.9}}
    for name in ("", "_text_shuffled", "_ground_truth"):
        stamped(folder / f"grounding{name}.metrics.json", told)
    files = {f"grounding.{m}.jsonl": (m, single) for m in GROUNDING_MODES}
    files |= {f"referring_{m}.jsonl": (m, sentences) for m in HEAD_MODES}
    for name, (mode, asked) in files.items():
        lines = [
            {"id": e.id, "boxes": [answer(rng, b, shares[mode]) for b in e.boxes], "scores": [0.9] * len(e.boxes)}
            for e in asked
        ]
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
    for m in HEAD_MODES:
        stamped(folder / f"referring_{m}.metrics.json", {"f1": 0.5, "f1_mean": 0.5, "n_acc": 0.5, "t_acc": 0.5})
    facts = {
        "seed": seed,
        "quick": True,
        "seconds": {"world": 1.0, "total": 2.0},
        "code": "0",
        "data": str(data),
        "cores": 2,
        "resumed": False,
        "config": DETECTOR,
        "steps": 8,
        "images": 16,
        "control_images": 8,
        "detector": detector,
        "towers": towers,
    }
    (folder / "facts.json").write_text(json.dumps(facts))
