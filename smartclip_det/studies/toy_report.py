"""The report and the summary of a finished toy run.

Reads the files that the steps wrote, draws pictures, and writes report.html (one file, no other needed) and
summary.json.
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

#: Columns of the alignments' table, where they were measured.
COLUMNS = {
    "map_shape": "shape mAP",
    "map_colour_shape": "colour + shape mAP",
    "map_colour_shape_held_out": "the same, held-out pairs",
    "map_caption_full": "full captions",
    "map_caption_partial": "partial captions",
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
    "text_shuffled": "names exchanged",
    "random_tower": "random towers",
}


def report_toy(folder: Path) -> None:
    """Summary, page, and a few printed lines of what came out.

    Raises:
        UserError: for a folder without a finished run, or a promised number that was not measured.
    """
    facts = read_json(folder / "facts.json", "facts of the run (run smartclip-det toy first)")
    summary = build_summary(folder, facts)
    stamp = protocol_stamp("toy", seed=facts["seed"], quick=facts["quick"], data=facts["data"], cores=facts["cores"])
    write_results(folder / "summary.json", stamp, summary, **summary)
    write_page(folder, facts, summary)
    for name, value, aim, met in verdicts(summary):
        print(f"{'met   ' if met else 'missed'}  {name:52s} {value:.3f}  (aim {aim:.3f})")


def verdicts(summary: Mapping[str, Any]) -> list[tuple[str, float, float, bool]]:
    """The aims: what, measured, aimed at, met."""
    align, found = summary["alignment"], summary["grounding"]
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
        ("novel shapes named from dense features", summary["region_probe"]["novel"]["dense"]["hard"], 0.82),
        ("novel AP50, against two thirds of base", ap["novel_ap50"]["hard"], ap["base_ap50"]["hard"] * 2 / 3),
        ("novel AP50, against 20 x names exchanged", ap["novel_ap50"]["hard"], 20 * ap["novel_ap50"]["text_shuffled"]),
        ("zero-shot grounding Acc@0.5, ten boxes", found["acc50"]["hard"], 0.72),
        ("zero-shot grounding, annotated boxes", found["ground_truth_boxes"]["acc50"]["hard"], 0.90),
        ("trained grounding head, exact answers", found["head"]["hard"]["f1"], 0.65),
    ]
    return [(name, value, aim, value >= aim) for name, value, aim in rows]


def write_page(folder: Path, facts: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """The page, from the idea to what a reader does next."""
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
    """The idea, and the data."""
    for text in IDEA_TEXT:
        page.text(text)
    page.picture(
        pictures.idea(),
        "Each column is one of the 128 dimensions; red is positive, blue negative, and blank "
        "is left out by the text's mask. Drawn from the towers that this run trained.",
    )
    if facts["quick"]:
        page.conclusion(
            "This is a quick run: small data, short training. It shows that every step works; its numbers mean little."
        )
    page.heading("1. The world")
    page.text(
        "Scenes of one to five shapes. Twelve shapes have boxes in training (base); six never do (novel) and are "
        "known from captions alone. Some pairs of colour and shape are held out: no training picture shows them and "
        "no caption names them."
    )
    page.gallery(pictures.scenes())


def alignment_section(
    page: ReportPage, folder: Path, facts: Mapping[str, Any], summary: Mapping[str, Any], gaps: Mapping[str, Gap]
) -> None:
    """Curves and presence."""
    page.heading("2. Alignment: pictures and captions")
    page.text(
        f"Two models are trained from nothing for {facts['steps']:,} steps on the same pictures and captions in "
        f"the same "
        "order: CLIP, and SmartCLIP, which has masks from the first step. Captions name one or two objects at first, "
        "and later any part of the scene with more of its colours, sizes and textures."
    )
    page.curves(
        {"CLIP": loss_curve(folder / "clip"), "SmartCLIP": loss_curve(folder / "smartclip")},
        "step",
        "contrastive loss",
        "Cross-entropies of one step, both directions added.",
    )
    page.text(
        "Which of the validation pictures show “a heart” (shape), which “a red heart” (colour + shape)? Mean average "
        "precision (mAP): 1 is perfect. Captions are searched for in the same way, and every picture that one is true "
        "of counts; binding is explained below the table. The words of the first column, here and below:"
    )
    page.terms({**ALIGNMENT_TERMS, **CONTROL_TERMS})
    table = summary["alignment"]
    columns = {k: t for k, t in COLUMNS.items() if f"{k}_off" in table["clip"]}
    rows = [[name, *(table[towers].get(f"{k}_{mode}") for k in columns)] for name, towers, mode in ROWS]
    page.table(["towers and scoring", *columns.values()], rows)
    page.conclusion(*conclusions.alignment(gaps))
    page.text(BINDING)
    page.text(
        "Intervals here and below are 95 % of a paired bootstrap over the validation pictures. They tell what "
        "other pictures would change, not other seeds: `smartclip-det study grid` tells of those.",
        note=True,
    )


def loss_curve(work_dir: Path) -> tuple[list[float], list[float]]:
    """Steps and contrastive loss of a training's logs, the newest line of each step."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    rows = {r["step"]: r["loss_sidm"] + r["loss_dism"] for r in lines if "loss_sidm" in r}
    return [float(s) for s in sorted(rows)], [rows[s] for s in sorted(rows)]


def mask_section(page: ReportPage, pictures: ToyPictures) -> None:
    """What a text keeps."""
    page.heading("3. What a text keeps: masks")
    page.text(
        "One row for each text, one column for each dimension: dark ones are kept when the text is compared with a "
        "picture; the share stands at the end. Compare the rows of one shape, and those of one colour."
    )
    page.picture(pictures.masks())
    page.conclusion(*conclusions.masks(pictures.mask_facts()))


def probe_section(page: ReportPage, pictures: ToyPictures, summary: Mapping[str, Any]) -> None:
    """What the towers tell of regions."""
    page.heading("4. Do patches know what they show?")
    page.text(PROBE_TEXT)
    probes = summary["region_probe_by_towers"]
    rows: list[list[str | float | None]] = []
    for towers, label in (("smartclip", "SmartCLIP"), ("clip", "CLIP"), ("random", "random towers")):
        for mode in ("hard", "off", "shuffled") if towers == "smartclip" else ("off",):
            values = [probes[towers][g][v][mode] for v in ("dense_value", "crop") for g in ("base", "novel")]
            rows.append([f"{label}, {NAMES[mode]}", *values])
    page.table(["towers and scoring", "dense, base", "dense, novel", "crop, base", "crop, novel"], rows)
    page.text(
        "Chance is 1 in 18, or 0.056. Towers with random weights give one name to nearly everything, which may be "
        "a novel one: read both columns.",
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
    """Average precision and pictures."""
    page.heading("5. Detection of shapes that no box ever showed")
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
        "Scenes with novel shapes, masks hard: first ones where every object was found, then ones where something "
        "went wrong. As many boxes are shown as there are objects; green is right, red is wrong (a wrong name, or no "
        "such object), and a thin black box was missed."
    )
    page.gallery(pictures.detections())
    page.heading("6. Another vocabulary, no training")
    page.text(
        "The same weights, asked for other names: a vocabulary is a list of texts and can be changed at any time."
    )
    page.gallery(pictures.vocabulary_swap())


def grounding_section(
    page: ReportPage, pictures: ToyPictures, summary: Mapping[str, Any], gaps: Mapping[str, Gap]
) -> None:
    """Accuracy and pictures."""
    page.heading("7. Grounding: a phrase points at an object")
    found = summary["grounding"]
    page.text(GROUNDING_TEXT.format(sentences=found["sentences"]))
    keys = ("acc50", "acc75", "miou")
    rows: list[list[str | float | None]] = [
        [f"zero-shot, {NAMES[m]}", *(v[k] for k in keys)] for m, v in found["by_threshold"].items()
    ]
    rows.append(["zero-shot, texts exchanged", found["acc50"]["text_shuffled"], None, None])
    rows.append(["chance: one of the ten boxes", found["chance"], None, None])
    rows.append(["best possible with these boxes", found["best_possible"], None, None])
    rows += [[f"trained head, {NAMES[m]}", *(v[k] for k in keys)] for m, v in found["head"].items()]
    truth = found["ground_truth_boxes"]
    rows += [[f"zero-shot on annotated boxes, {NAMES[m]}", v, None, None] for m, v in truth["acc50"].items()]
    rows.append(["chance on annotated boxes", truth["chance"], None, None])
    page.table(["method and scoring", "Acc@0.5", "Acc@0.75", "mIoU"], rows)
    page.conclusion(*conclusions.grounding(summary, gaps))
    page.text(
        "Zero-shot, masks hard, scenes of several objects: right ones first (green), then wrong ones (red; the "
        "thin black box was meant)."
    )
    page.gallery(pictures.groundings("grounding.hard.jsonl"))
    page.text(
        "The trained head on all sentences, those of no object and of several too. Exact: every object and "
        "nothing else; N-acc: “nothing” said where it is so; T-acc: something said where there is something."
    )
    page.table(
        ["trained head", "exact", "N-acc", "T-acc"],
        [[NAMES[m], v["f1"], v["n_acc"], v["t_acc"]] for m, v in found["head"].items()],
    )
    page.gallery(pictures.groundings("referring_hard.jsonl"))


def closing(page: ReportPage, facts: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Aims, how to run it again, and what comes next."""
    page.heading("8. What was aimed at, and what came out")
    page.table(
        ["aim", "measured", "aimed at", "met"],
        [[n, v, a, "yes" if met else "no"] for n, v, a, met in verdicts(summary)],
    )
    page.heading("9. Again")
    seconds = {k: v for k, v in facts["seconds"].items() if k != "total"}
    page.text(
        f"Seed {facts['seed']}, {facts['cores']} cores, code {facts['code']}, {facts['seconds']['total']:.0f} s in all"
        + (" (over several calls)" if facts["resumed"] else "")
        + ". One seed is one sample. `smartclip-det toy` prints the command of each step; every number here is in "
        "`summary.json`; the trained weights are in `checkpoints`, ready for `smartclip-det demo`."
    )
    longest = sorted(seconds.items(), key=lambda s: -s[1])[:8]
    page.table(["the longest steps", "seconds"], [[k, v] for k, v in longest], digits=0)
    page.heading("10. What to do with your own encoder")
    for text, command in OWN_ENCODER:
        page.text(text)
        page.code(command)
