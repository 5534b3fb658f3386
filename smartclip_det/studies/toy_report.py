"""The report and the summary of a finished toy run.

Reads the result files of the steps, draws figures, and writes report.html (self-contained) and summary.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartclip_det.formats.json_files import read_json
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.studies import toy_conclusions as conclusions
from smartclip_det.studies.toy_measures import Gap, build_summary
from smartclip_det.studies.toy_pages import (
    ALIGNMENT_TERMS,
    BINDING,
    CONTROL_TERMS,
    DETECTION_TEXT,
    GROUNDING_TEXT,
    IDEA_TEXT,
    OWN_ENCODER,
    PROBE_TEXT,
)
from smartclip_det.studies.toy_pictures import ToyPictures
from smartclip_det.visualization.report import ReportPage

#: Columns of the alignment table, shown if measured.
COLUMNS = {
    "map_shape": "shape mAP",
    "map_colour_shape": "colour + shape mAP",
    "map_colour_shape_held_out": "colour + shape mAP, held-out pairs",
    "map_caption_full": "full captions mAP",
    "map_caption_partial": "partial captions mAP",
    "auc_binding": "binding (AUC)",
}
ROWS = (
    ("CLIP, masks off", "clip", "off"),
    ("SmartCLIP, masks hard", "smartclip", "hard"),
    ("SmartCLIP, masks off", "smartclip", "off"),
    ("SmartCLIP, another text's mask", "smartclip", "shuffled"),
    ("SmartCLIP, random masks", "smartclip", "random"),
)
NAMES = {
    "hard": "masks hard",
    "off": "masks off",
    "random": "random masks",
    "shuffled": "another text's mask",
    "text_shuffled": "names permuted",
    "random_tower": "random towers",
}


def report_toy(folder: Path) -> None:
    """Write summary and page, and print the targets with their results.

    Raises:
        UserError: for a folder without a finished run, or a required number that was not measured.
    """
    facts = read_json(folder / "facts.json", "facts of the run (run smartclip-det toy first)")
    summary = build_summary(folder, facts)
    stamp = protocol_stamp("toy", seed=facts["seed"], quick=facts["quick"], data=facts["data"], cores=facts["cores"])
    write_results(folder / "summary.json", stamp, summary, **summary)
    write_page(folder, facts, summary)
    for name, value, aim, met in verdicts(summary):
        print(f"{'met   ' if met else 'missed'}  {name:52s} {value:.3f}  (target {aim:.3f})")


def verdicts(summary: Mapping[str, Any]) -> list[tuple[str, float, float, bool]]:
    """Return the targets: name, measured value, target value, whether it is met."""
    align, grounding = summary["alignment"], summary["grounding"]
    ap = summary["detection"]
    gaps = summary["gaps"]
    best = {
        k: max(align["clip"][f"{k}_off"], align["smartclip"][f"{k}_hard"]) for k in ("map_shape", "map_colour_shape")
    }
    rows = [
        ("shape mAP, better of CLIP and SmartCLIP", best["map_shape"], 0.80),
        ("colour + shape mAP, better of both", best["map_colour_shape"], 0.58),
        *(
            (f"colour + shape, masks hard minus {NAMES[m]}", gaps[f"colour_shape {m}"]["value"], aim)
            for m, aim in (("off", 0.10), ("shuffled", 0.10), ("random", 0.20))
        ),
        ("novel shapes classified from dense features", summary["region_probe"]["novel"]["dense"]["hard"], 0.82),
        ("novel AP50 (target: two thirds of base AP50)", ap["novel_ap50"]["hard"], ap["base_ap50"]["hard"] * 2 / 3),
        ("novel AP50 (target: 20 x names permuted)", ap["novel_ap50"]["hard"], 20 * ap["novel_ap50"]["text_shuffled"]),
        ("zero-shot grounding Acc@0.5, ten boxes", grounding["acc50"]["hard"], 0.72),
        ("zero-shot grounding, annotated boxes", grounding["ground_truth_boxes"]["acc50"]["hard"], 0.90),
        ("trained grounding head, exact matches", grounding["head"]["hard"]["f1"], 0.65),
    ]
    return [(name, value, aim, value >= aim) for name, value, aim in rows]


def write_page(folder: Path, facts: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Write the page."""
    page = ReportPage("SmartCLIP on the toy world: from captions to boxes")
    pictures = ToyPictures(folder, facts)
    gaps = {k: Gap(**g) for k, g in summary["gaps"].items()}
    opening(page, pictures, facts)
    alignment_section(page, folder, facts, summary, gaps)
    mask_section(page, pictures)
    probe_section(page, pictures, summary)
    detection_section(page, pictures, facts, summary, gaps)
    grounding_section(page, pictures, summary, gaps)
    closing(page, facts, summary)
    page.write(folder / "report.html")


def opening(page: ReportPage, pictures: ToyPictures, facts: Mapping[str, Any]) -> None:
    """Add the idea and the data."""
    for text in IDEA_TEXT:
        page.text(text)
    page.picture(
        pictures.idea(),
        f"Each column is one of the {pictures.towers.config.embed_dim} dimensions: red is positive, blue negative, and "
        "blank dimensions are removed by the text's mask. Drawn with the towers trained in this run.",
    )
    if facts["quick"]:
        page.conclusion(
            "This is a quick run with little data and short training: a smoke test whose numbers mean little."
        )
    page.heading("1. The world")
    page.text(
        "Scenes of one to five shapes. Twelve shapes have training boxes (base); six never do (novel) and are known "
        "from captions only. Some pairs of colour and shape are held out: they occur in no training image and no "
        "caption."
    )
    page.gallery(pictures.scenes())


def alignment_section(
    page: ReportPage, folder: Path, facts: Mapping[str, Any], summary: Mapping[str, Any], gaps: Mapping[str, Gap]
) -> None:
    """Add loss curves and presence metrics."""
    page.heading("2. Alignment of images and captions")
    page.text(
        f"Two models are trained from scratch for {facts['steps']:,} steps on the same images and captions in the same "
        "order: CLIP, and SmartCLIP, which has masks from the first step. Captions mention one or two objects at "
        "first, later any part of the scene with more of its colours, sizes and textures."
    )
    page.curves(
        {"CLIP": loss_curve(folder / "clip"), "SmartCLIP": loss_curve(folder / "smartclip")},
        "step",
        "contrastive loss",
        "Sum of the cross-entropies of both directions.",
    )
    page.text(
        "Which validation images show “a heart” (shape), and which “a red heart” (colour + shape)? Mean average "
        "precision (mAP), where 1 is perfect. Captions are used as queries in the same way, and every image for which "
        "a caption is true counts; binding is explained below the table. The terms of the first column, here and below:"
    )
    page.terms({**ALIGNMENT_TERMS, **CONTROL_TERMS})
    table = summary["alignment"]
    columns = {k: t for k, t in COLUMNS.items() if f"{k}_off" in table["clip"]}
    rows = [[name, *(table[towers].get(f"{k}_{mode}") for k in columns)] for name, towers, mode in ROWS]
    page.table(["towers and masks", *columns.values()], rows)
    page.conclusion(*conclusions.alignment(gaps), *conclusions.captions(table))
    page.text(BINDING)
    page.text(
        "Intervals, here and below, are 95 % intervals of a paired bootstrap over the validation images. They cover "
        "other images, not other seeds; for those, run `smartclip-det study grid`.",
        note=True,
    )


def loss_curve(work_dir: Path) -> tuple[list[float], list[float]]:
    """Read steps and contrastive loss from training logs; the last entry of each step wins."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    rows = {r["step"]: r["loss_sidm"] + r["loss_dism"] for r in lines if "loss_sidm" in r}
    return [float(s) for s in sorted(rows)], [rows[s] for s in sorted(rows)]


def mask_section(page: ReportPage, pictures: ToyPictures) -> None:
    """Add the masks of texts."""
    page.heading("3. Masks: what a text keeps")
    page.text(
        "One row per text, one column per dimension; dark dimensions are kept when the text is compared with an image, "
        "and their fraction is given at the end of the row. Compare rows with the same shape, and with the same colour."
    )
    page.picture(pictures.masks())
    page.conclusion(*conclusions.masks(pictures.mask_facts()))


def probe_section(page: ReportPage, pictures: ToyPictures, summary: Mapping[str, Any]) -> None:
    """Add the region probe."""
    page.heading("4. Do patch features recognise objects?")
    page.text(PROBE_TEXT)
    probes = summary["region_probe_by_towers"]
    rows: list[list[str | float | None]] = []
    for towers, label in (("smartclip", "SmartCLIP"), ("clip", "CLIP"), ("random", "random towers")):
        for mode in ("hard", "off", "shuffled") if towers == "smartclip" else ("off",):
            values = [probes[towers][g][v][mode] for v in ("dense_value", "crop") for g in ("base", "novel")]
            rows.append([f"{label}, {NAMES[mode]}", *values])
    page.table(["towers and masks", "dense, base", "dense, novel", "crop, base", "crop, novel"], rows)
    page.text(
        "Chance is 1 in 18, or 0.056. Towers with random weights predict the same class nearly everywhere, which may "
        "be a novel one, so read base and novel together.",
        note=True,
    )
    page.conclusion(*conclusions.probe(summary))
    page.gallery(pictures.heatmaps())


def detection_section(
    page: ReportPage,
    pictures: ToyPictures,
    facts: Mapping[str, Any],
    summary: Mapping[str, Any],
    gaps: Mapping[str, Gap],
) -> None:
    """Add average precision and example images."""
    page.heading("5. Detection of shapes without training boxes")
    page.text(DETECTION_TEXT.format(images=facts["images"], control=facts["control_images"]))
    detection = summary["detection"]
    keys = ("base_ap50", "novel_ap50", "all_ap50")
    page.table(
        ["test", "base AP50", "novel AP50", "all AP50"],
        [[NAMES[t], *(detection[k][t] for k in keys)] for t in detection["base_ap50"]],
    )
    page.bars({NAMES[t]: v for t, v in detection["novel_ap50"].items()}, "novel AP50")
    page.conclusion(*conclusions.detection(summary, gaps))
    page.text(
        "Scenes with novel shapes, masks hard: first scenes where every object was detected, then scenes with errors. "
        "As many boxes are shown as there are objects; green is correct, red is wrong (wrong name or no such object), "
        "and thin black boxes were missed."
    )
    page.gallery(pictures.detections())
    page.heading("6. Another vocabulary without training")
    page.text(
        "The same weights with other class names: a vocabulary is a list of texts and can be changed at any time. "
        "First names like those in captions; then colours alone, such as “red shape”, which no caption of the training "
        "uses: a model is only as good as the language that it was trained on."
    )
    page.gallery(pictures.vocabulary_swap())


def grounding_section(
    page: ReportPage, pictures: ToyPictures, summary: Mapping[str, Any], gaps: Mapping[str, Gap]
) -> None:
    """Add grounding accuracy and example images."""
    page.heading("7. Grounding: a phrase refers to an object")
    results = summary["grounding"]
    page.text(GROUNDING_TEXT.format(sentences=results["sentences"]))
    keys = ("acc50", "acc75", "miou")
    rows: list[list[str | float | None]] = [
        [f"zero-shot, {NAMES[m]}", *(v[k] for k in keys)] for m, v in results["by_threshold"].items()
    ]
    rows.append(["zero-shot, texts permuted", results["acc50"]["text_shuffled"], None, None])
    rows.append(["chance: one of the ten boxes", results["chance"], None, None])
    rows.append(["upper bound with these boxes", results["best_possible"], None, None])
    rows += [[f"trained head, {NAMES[m]}", *(v[k] for k in keys)] for m, v in results["head"].items()]
    truth = results["ground_truth_boxes"]
    rows += [[f"zero-shot on annotated boxes, {NAMES[m]}", v, None, None] for m, v in truth["acc50"].items()]
    rows.append(["chance on annotated boxes", truth["chance"], None, None])
    page.table(["method and masks", "Acc@0.5", "Acc@0.75", "mIoU"], rows)
    page.conclusion(*conclusions.grounding(summary, gaps))
    page.text(
        "Zero-shot, masks hard, scenes with several objects: correct ones first (green), then wrong ones (red; the "
        "thin black box is the target)."
    )
    page.gallery(pictures.groundings("grounding.hard.jsonl"))
    page.text(
        "The trained head on all sentences, including those with no or several targets. Exact: all targets and nothing "
        "else; N-acc: no box where there is no target; T-acc: at least one box where there is a target."
    )
    page.table(
        ["trained head", "exact", "N-acc", "T-acc"],
        [[NAMES[m], v["f1"], v["n_acc"], v["t_acc"]] for m, v in results["head"].items()],
    )
    page.gallery(pictures.groundings("referring_hard.jsonl"))


def closing(page: ReportPage, facts: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Add targets, how to reproduce the run, and what to do next."""
    page.heading("8. Targets and results")
    page.table(
        ["metric", "measured", "target", "met"],
        [[n, v, a, "yes" if met else "no"] for n, v, a, met in verdicts(summary)],
    )
    page.heading("9. Reproduce this run")
    seconds = {k: v for k, v in facts["seconds"].items() if k != "total"}
    page.text(
        f"Seed {facts['seed']}, {facts['cores']} cores, code {facts['code']}, {facts['seconds']['total']:.0f} s "
        "in total"
        + (" (over several runs)" if facts["resumed"] else "")
        + ". One seed is one sample. `smartclip-det toy` prints the command of each step; all numbers are in "
        "`summary.json`; the trained weights are in `checkpoints`, ready for `smartclip-det demo`."
    )
    longest = sorted(seconds.items(), key=lambda s: -s[1])[:8]
    page.table(["longest steps", "seconds"], [[k, v] for k, v in longest], digits=0)
    page.heading("10. Use your own encoder")
    for text, command in OWN_ENCODER:
        page.text(text)
        page.code(command)
