"""The report and the summary of a finished toy run.

Reads the JSON files that the steps wrote, draws pictures with the trained detector, and writes report.html (one file,
no other needed) and summary.json.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.core.mask_modes import MASK_MODES, current_names
from smartclip_det.formats.json_files import read_json
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.studies.toy_pictures import ToyPictures
from smartclip_det.visualization.report import ReportPage

MODES = MASK_MODES
ALIGNMENT = ("t2i_r1_long", "t2i_r1_short", "t2i_r1_partial", "t2i_r1_long_hard", "t2i_r1_long_off",
             "t2i_r1_partial_hard", "t2i_r1_partial_off", "map_shape", "map_colour_shape", "map_shape_hard",
             "map_shape_off", "map_colour_shape_hard", "map_colour_shape_off", "mask_density_long",
             "mask_density_short")  # fmt: skip


def report_toy(folder: Path) -> None:
    """Summary, page, and a few printed lines of what came out.

    Raises:
        UserError: for a folder without a finished run, or a promised number that was not measured.
    """
    facts = read_json(folder / "facts.json", "facts of the run (run smartclip-det toy first)")
    summary = build_summary(folder, facts)
    check_complete(summary, REQUIRED)
    check_complete(summary["grounding"], ("chance",), "summary.grounding")
    stamp = protocol_stamp("toy", seed=facts["seed"], quick=facts["quick"], data=facts["data"], cores=facts["cores"])
    write_results(folder / "summary.json", stamp, summary, **summary)
    write_page(folder, facts, summary)
    print_verdicts(summary)


def metrics_of(path: Path) -> dict[str, Any]:
    """The metrics of a stamped result file."""
    found = read_json(path, "result file").get("metrics")
    if not isinstance(found, dict):
        raise UserError(f"{path} has no metrics.")
    return current_names(found)


def build_summary(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, by the names that the documentation uses."""
    alignment = {}
    for name in ("pretrain", "clip", "smartclip"):
        found = metrics_of(folder / f"{name}.metrics.json")
        alignment[name] = {k: found[k] for k in ALIGNMENT if k in found}
    probes = {n: metrics_of(folder / f"probe_{n}.json") for n in ("clip", "smartclip", "random")}
    detection: dict[str, dict[str, float]] = {k: {} for k in ("base_ap50", "novel_ap50", "all_ap50")}
    for mode in (*MODES, "text_shuffled", "random_tower"):
        found = metrics_of(folder / f"detection_{mode}.metrics.json")
        for key, values in detection.items():
            values[mode] = found[key]
    runs = {n: metrics_of(folder / f"grounding{n and '_' + n}.metrics.json")
            for n in ("", "text_shuffled", "no_spatial", "dense", "ground_truth")}  # fmt: skip
    plain = {m: runs[""][m]["acc50"] for m in MODES}
    grounding = {
        "proposals": "rpn, best 10",
        "views": "crop, spatial words",
        "acc50": {**plain, "text_shuffled": runs["text_shuffled"]["hard"]["acc50"]},
        "by_threshold": {m: runs[""][m] for m in MODES},
        "no_spatial": {m: runs["no_spatial"][m] for m in ("hard", "off")},
        "dense": {m: runs["dense"][m] for m in ("hard", "off")},
        "chance": runs[""]["chance"]["acc50"],
        "ground_truth_boxes": {"acc50": {m: runs["ground_truth"][m]["acc50"] for m in MODES},
                               "chance": runs["ground_truth"]["chance"]["acc50"]},
    }  # fmt: skip
    versions = read_json(folder / "pretrain.metrics.json", "result file")["protocol"]["versions"]
    groups = {g: views_of(probes["smartclip"][g]) for g in ("base", "novel")}
    return {
        "alignment": alignment, "region_probe": groups, "region_probe_by_towers": probes, "detection": detection,
        "grounding": grounding, "seconds": facts["seconds"], "seed": facts["seed"], "versions": versions,
    }  # fmt: skip


PROMISED = ("t2i_r1_long", "t2i_r1_partial_hard", "t2i_r1_partial_off", "map_shape", "map_colour_shape")
REQUIRED = {
    "alignment": dict.fromkeys(("clip", "smartclip"), PROMISED),
    "region_probe": dict.fromkeys(("base", "novel"), dict.fromkeys(("dense", "crop"), ("hard", "off"))),
    "detection": dict.fromkeys(("base_ap50", "novel_ap50", "all_ap50"), (*MODES, "text_shuffled", "random_tower")),
    "grounding": {"acc50": (*MODES, "text_shuffled")},
}


def check_complete(found: Any, wanted: Any, where: str = "summary") -> None:
    """Raise when a promised number is missing or is no number."""
    for key in wanted:
        if key not in found:
            raise UserError(f"{where}.{key} was not measured.")
        if isinstance(wanted, dict):
            check_complete(found[key], wanted[key], f"{where}.{key}")
        elif not (isinstance(found[key], float) and math.isfinite(found[key])):
            raise UserError(f"{where}.{key} is {found[key]!r}, which is no number.")


def views_of(probe: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """All views, with ``dense`` for the dense mode that the detector uses."""
    return {**probe, "dense": probe["dense_value"]}


def verdicts(summary: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """The aims: what, measured, aimed at, met."""
    detection, grounding = summary["detection"], summary["grounding"]
    base, novel = detection["base_ap50"]["hard"], detection["novel_ap50"]["hard"]
    rows = [
        ("shape mAP, SmartCLIP", summary["alignment"]["smartclip"]["map_shape"], 0.89),
        ("colour + shape mAP, SmartCLIP", summary["alignment"]["smartclip"]["map_colour_shape"], 0.79),
        ("novel shapes, dense features (the gate)", summary["region_probe"]["novel"]["dense"]["hard"], 0.6),
        ("base AP50", base, 0.5),
        ("novel AP50, against half of base", novel, base / 2),
        ("novel AP50, against 3 x shuffled texts", novel, 3 * detection["novel_ap50"]["text_shuffled"]),
        ("grounding Acc@0.5, against 2 x chance", grounding["acc50"]["hard"], 2 * grounding["chance"]),
    ]
    return [(name, value, aim, value >= aim) for name, value, aim in rows]


def print_verdicts(summary: dict[str, Any]) -> None:
    """One line per aim."""
    for name, value, aim, met in verdicts(summary):
        print(f"{'met   ' if met else 'missed'}  {name:45s} {value:.3f}  (aim {aim:.3f})")


def write_page(folder: Path, facts: dict[str, Any], summary: dict[str, Any]) -> None:
    """The page, from the idea to the failures."""
    page = ReportPage("SmartCLIP on the toy world: from captions to boxes")
    pictures = ToyPictures(facts["config"], facts["detector"], facts["towers"], facts["data"])
    opening(page, pictures, facts)
    alignment_section(page, folder, summary)
    page.heading("3. What a text keeps: masks")
    page.text(
        "One row per text, one column per dimension of the joint embedding: dark dimensions are the ones that the text "
        "keeps when it is compared with an image. The share kept stands at the end. Texts that share a word should "
        "share dimensions; whether they do is for you to see."
    )
    page.picture(pictures.masks())
    probe_section(page, summary)
    detection_section(page, pictures, summary)
    grounding_section(page, pictures, summary)
    closing(page, facts, summary)
    page.write(folder / "report.html")


def opening(page: ReportPage, pictures: ToyPictures, facts: dict[str, Any]) -> None:
    """What this is about, and the data."""
    page.text(
        "CLIP compares a whole image with a whole caption. A caption, though, speaks of a part of its image only. "
        "SmartCLIP lets each text choose, with a binary mask over the dimensions of the embedding, the part of the "
        "image vector that it is compared with: score(image, text) = cos(image * mask(text), text). This page shows "
        "what that gives on drawn scenes, step by step: alignment with captions, then boxes of shapes that no training "
        "box ever showed, then phrases that point at one object."
    )
    if facts["quick"]:
        page.text(
            "This is a quick run: small data, short training. It shows that every step works; its numbers mean little."
        )
    page.heading("1. The world")
    page.text(
        "Scenes of one to five shapes. Long captions describe everything, short ones a part. Twelve shapes have boxes "
        "in training (base); six never do (novel) and are known from captions alone."
    )
    page.gallery(pictures.scenes())


def alignment_section(page: ReportPage, folder: Path, summary: dict[str, Any]) -> None:
    """Curves and retrieval."""
    page.heading("2. Alignment: images and captions")
    page.text(
        "A small CLIP is trained from nothing on short captions. From its weights, two alignments run for equally many "
        "steps on long prefixes and short captions: CLIP's loss, and SmartCLIP's. The validation images are new, and "
        "include pairs of colour and shape that training never showed. mAP asks which images show 'a heart' "
        "(shape) or 'a red heart' (colour + shape); retrieval finds the image of a caption among all validation images."
    )
    page.curves({n: loss_curve(folder / n) for n in ("pretrain", "clip", "smartclip")}, "step", "contrastive loss",
                "Cross-entropies of one step, both directions added; smoothed by the logger.")  # fmt: skip
    rows = []
    for name, values in summary["alignment"].items():
        for scoring in ("hard", "off"):
            if scoring == "hard" and name != "smartclip":
                continue
            rows.append([f"{name}, {scoring}", values[f"map_shape_{scoring}"], values[f"map_colour_shape_{scoring}"],
                         values[f"t2i_r1_long_{scoring}"], values[f"t2i_r1_partial_{scoring}"]])  # fmt: skip
    page.table(["towers, scoring", "mAP shape", "mAP colour + shape", "R@1 long", "R@1 partial"], rows)


def loss_curve(work_dir: Path) -> tuple[list[float], list[float]]:
    """Steps and contrastive loss of a training's newest log; both cross-entropies, without their weight."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    rows = {r["step"]: r for r in lines if "loss_sidm" in r}
    weight = 10.0 if any("loss_sparsity" in r for r in rows.values()) else 0.5
    steps = sorted(rows)
    return [float(s) for s in steps], [(rows[s]["loss_sidm"] + rows[s]["loss_dism"]) / weight for s in steps]


def probe_section(page: ReportPage, summary: dict[str, Any]) -> None:
    """What the towers tell of regions."""
    page.heading("4. Region probe: do patches know what they show?")
    page.text(
        "Ground-truth boxes of the validation images, classified among all 18 shapes by the towers alone. 'crop' "
        "encodes the region by itself; 'dense' pools the patch vectors of the whole image, which is what a detector "
        "sees; 'mask' pools them under the object's exact outline. What a frozen detector can know of novel shapes "
        "rests on 'dense'."
    )
    views = list(summary["region_probe_by_towers"]["smartclip"]["novel"])
    rows = []
    for name, probe in summary["region_probe_by_towers"].items():
        for view in views if name == "smartclip" else ("crop", "dense_value", "mask_value"):
            rows.append([f"{name}: {view}", *(probe[g][view][m] for g in ("base", "novel") for m in ("hard", "off"))])
    page.table(["towers: view", "base, hard", "base, off", "novel, hard", "novel, off"], rows)
    page.text(
        "Chance is 1 in 18, or 0.056. Towers without a mask network score the same with masks on and off.", note=True
    )


def detection_section(page: ReportPage, pictures: ToyPictures, summary: dict[str, Any]) -> None:
    """Average precision and pictures."""
    page.heading("5. Detection of shapes that no box ever showed")
    page.text(
        "A frozen SmartCLIP image tower under trained heads (boxes of the 12 base shapes only). All 18 names are asked "
        "for at once. Controls: random masks of equal density (random), another text's mask (shuffled), the text of "
        "another name (text_shuffled), and the same heads trained on a tower with random weights (random_tower)."
    )
    detection = summary["detection"]
    keys = ("base_ap50", "novel_ap50", "all_ap50")
    rows = [[mode, *(detection[k][mode] for k in keys)] for mode in detection["base_ap50"]]
    page.table(["scoring", "base AP50", "novel AP50", "all AP50"], rows)
    page.bars(detection["novel_ap50"], "novel AP50")
    page.text("Novel shapes: right ones first, then failures (green: annotated; coloured: found).")
    page.gallery(pictures.detections())
    page.heading("6. Another vocabulary, no training")
    page.text("The same weights, asked for other names. Scores are the probability of a name against background.")
    page.gallery(pictures.vocabulary_swap())


def grounding_section(page: ReportPage, pictures: ToyPictures, summary: dict[str, Any]) -> None:
    """Accuracy and pictures."""
    page.heading("7. Grounding: a phrase points at an object")
    page.text(
        "Zero-shot: crops of the detector's ten best boxes, ranked by masked cosine with the expression; words such as "
        "'left of' are read by rules and multiply distributions over boxes. 'dense' pools the patch vectors instead of "
        "encoding each crop; 'no spatial' leaves the rules out. Chance is a box drawn from the ten: scenes have few "
        "objects, and most boxes lie on one of them, so it is high. The pictures are of the predictor's own grounding, "
        "which ranks boxes by the detector's scores."
    )
    grounding = summary["grounding"]
    keys = ("acc50", "acc75", "acc90", "miou")
    rows: list[list[str | float | None]] = [
        [f"crop + spatial, {m}", *(v[k] for k in keys)] for m, v in grounding["by_threshold"].items()
    ]
    for kind, label in (("no_spatial", "crop, no spatial"), ("dense", "dense + spatial")):
        rows += [[f"{label}, {m}", *(v[k] for k in keys)] for m, v in grounding[kind].items()]
    truth = grounding["ground_truth_boxes"]
    rows.append(["ground-truth boxes, hard", truth["acc50"]["hard"], None, None, None])
    rows.append(["chance on ground-truth boxes", truth["chance"], None, None, None])
    rows.append(["crop + spatial, shuffled texts", grounding["acc50"]["text_shuffled"], None, None, None])
    rows.append(["chance", grounding["chance"], None, None, None])
    page.table(["region vectors, masks", "Acc@0.5", "Acc@0.75", "Acc@0.9", "mIoU"], rows)
    page.gallery(pictures.groundings())


def closing(page: ReportPage, facts: dict[str, Any], summary: dict[str, Any]) -> None:
    """Aims, and how to run it again."""
    page.heading("8. What was aimed at, and what came out")
    page.table(["aim", "measured", "aimed at", "met"],
               [[n, v, a, "yes" if met else "no"] for n, v, a, met in verdicts(summary)])  # fmt: skip
    seconds = {k: v for k, v in facts["seconds"].items() if k != "total"}
    page.heading("9. Again")
    page.text(
        f"Seed {facts['seed']}, {facts['cores']} cores, code {facts['code']}, {facts['seconds']['total']:.0f} s in all"
        + (" (over several calls)" if facts["resumed"] else "")
        + ". One seed is one sample: `tools/analysis/study.py` runs several. `python tools/toy.py` prints the "
        "command of each step; every number here is in `summary.json`."
    )
    page.table(["step", "seconds"], list(seconds.items()), digits=0)
