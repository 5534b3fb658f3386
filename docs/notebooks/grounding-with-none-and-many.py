# %% [markdown]
# # Grounding with none and many
#
# What you will learn:
#
# - how a phrase points at an object: by a detector without training for it, and by a trained head,
# - how an expression is read into things, places and relations,
# - how to answer "nothing" and "several", and how the threshold decides it,
# - how to choose the threshold on some pictures and report it on others.
#
# Everything here runs on a CPU in well under a minute, on the weights and the drawn scenes of `make toy` (or `make
# toy QUICK=1`, whose models have learned little: read how the numbers are compared, not the numbers).

# %%
import json
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image

from smartclip_det import Predictor
from smartclip_det.apis.toy_run import find_toy_run
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.protocols.registry import evaluate
from smartclip_det.visualization import draw_boxes, sheet

run = find_toy_run()
print("A quick run: the models have learned little." if run.quick else "A full run.")

# %% [markdown]
# ## Expressions
#
# `load_expressions` reads every common layout of referring expressions. Each expression is a sentence about one
# picture, with the boxes that it means. Classic benchmarks (RefCOCO) have exactly one box for each; in gRefCOCO, and
# here, it can be none or several.

# %%
expressions = load_expressions(run.data / "refs/finetune_toy_val.json")
by_count = {"none": [], "one": [], "many": []}
for e in expressions:
    by_count[("none", "one", "many")[min(len(e.boxes), 2)]].append(e)
for kind, rows in by_count.items():
    print(f"{kind:5}{len(rows):6}   for example: {rows[3].sentence!r}")

# %% [markdown]
# ## Two ways to ground
#
# **A detector, zero-shot.** Any predictor can `ground`: it scores its boxes with the phrase, and reasons about places
# and relations by rules on the boxes.
#
# **A trained head.** It reads the whole expression, finds its own boxes, and was trained on expressions of all three
# kinds.

# %%
towers = {"towers.checkpoint": run.checkpoint("smartclip")}
detector = Predictor.from_config(
    "toy/open-vocab-rcnn_smartclip-toy_toy",
    run.checkpoint("detector"),
    cfg_options=towers,
    templates=["{article} {}"],
    use_cache=False,
    parser="rules",
    device="cpu",
)
head = Predictor.from_config(
    "toy/referring_smartclip-toy_toy", run.checkpoint("referring"), cfg_options=towers, use_cache=False, device="cpu"
)

# %% [markdown]
# The detector's reading of an expression is a tree that you can look at. Each thing in it is scored under its own
# mask; what stands below it are relations and places.

# %%
for text in ("the red star left of the circle", "the largest ring", "the heart"):
    print("\n".join(detector.tree(text).outline()), end="\n\n")

# %% [markdown]
# ## One picture, three questions
#
# We take a picture that has expressions of all three kinds, and ask both ways. `ground` returns `Detections`: `top_k`
# boxes at most, and none where no box reaches `threshold`.

# %%
by_picture = {}
for kind, rows in by_count.items():
    for e in rows:
        by_picture.setdefault(e.file_name, {}).setdefault(kind, e)
file_name, asked = next((f, kinds) for f, kinds in by_picture.items() if len(kinds) == 3)
picture = Image.open(run.data / "images" / file_name).convert("RGB")


def panel(boxes, scores, caption):
    large = picture.resize((250, 250 * picture.height // picture.width), Image.Resampling.NEAREST)
    scaled = [[v * 250 / picture.width for v in box] for box in boxes]
    return draw_boxes(large, scaled, [caption] * len(scaled), [caption], scores)


panels = []
detector.set_image(picture)
head.set_image(picture)
for kind, e in asked.items():
    zero_shot = detector.ground(e.sentence, top_k=3, threshold=0.3)
    trained = head.ground(e.sentence, top_k=3, threshold=0.5)
    print(f"{kind:5}{e.sentence!r}: {len(e.boxes)} meant, zero-shot {len(zero_shot)}, trained {len(trained)}")
    panels.append(panel(e.boxes, None, "meant"))
    panels += [panel(f.boxes.tolist(), f.scores.tolist(), w) for f, w in ((zero_shot, "zero-shot"), (trained, "head"))]
sheet(panels, columns=3)

# %% [markdown]
# A row is one question; left is what is meant, then zero-shot, then the trained head. A picture without a box is the
# answer "nothing".
#
# ## The threshold decides
#
# Three numbers tell how well none and many are answered:
#
# - **exact**: share of sentences answered with every object and nothing else ("none" is exact where nothing is
#   meant),
# - **N-acc**: of the sentences that mean nothing, the share answered "nothing",
# - **T-acc**: of the sentences that mean something, the share answered with something.
#
# A high threshold says "nothing" often: N-acc rises and T-acc falls. We ask the trained head all expressions of some
# pictures, keep every box with its score, and then vary the threshold on what was kept: no picture is encoded twice.

# %%
PICTURES = 80
chosen = list(dict.fromkeys(e.file_name for e in expressions))[:PICTURES]
answered = {}
for name in chosen:
    mine = [e for e in expressions if e.file_name == name]
    head.set_image(run.data / "images" / name)
    found = head.ground([e.sentence for e in mine], top_k=10)
    answered.update(zip((e.id for e in mine), found, strict=True))

half = {name: n % 2 for n, name in enumerate(chosen)}
folder = Path(mkdtemp())
source = json.loads((run.data / "refs/finetune_toy_val.json").read_text())


def write_half(which):
    """Annotations and answers of every other picture."""
    images = [i for i in source["images"] if half.get(i["file_name"]) == which]
    ids = {i["id"] for i in images}
    part = {**source, "images": images, "annotations": [a for a in source["annotations"] if a["image_id"] in ids]}
    ann, pred = folder / f"expressions_{which}.json", folder / f"answers_{which}.jsonl"
    ann.write_text(json.dumps(part))
    lines = [{"id": i, "boxes": answered[i].boxes.tolist(), "scores": answered[i].scores.tolist()} for i in ids]
    pred.write_text("\n".join(map(json.dumps, lines)))
    return ann, pred


def measured(files, threshold):
    return evaluate("grefcoco", *files, score_threshold=threshold, overlap="iou").metrics


first, second = write_half(0), write_half(1)
thresholds = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
table = {t: measured(first, t) for t in thresholds}
print(f"{'threshold':>9}{'exact':>8}{'N-acc':>8}{'T-acc':>8}")
for t, m in table.items():
    print(f"{t:9.2f}{m['f1']:8.3f}{m['n_acc']:8.3f}{m['t_acc']:8.3f}")

# %% [markdown]
# ## Choose on one half, report on the other
#
# The best threshold on some pictures looks a little better there than it is. So choose it on one half and report the
# other; that is what `smartclip-det study calibrate` does with files of a training and a validation set.

# %%
best = max(table, key=lambda t: table[t]["f1"])
m = measured(second, best)
print(f"chosen {best}: exact {table[best]['f1']:.3f} on the pictures that chose it,")
print(f"{m['f1']:.3f} on the others (N-acc {m['n_acc']:.3f}, T-acc {m['t_acc']:.3f})")
nothing = sum(not e.boxes for e in expressions) / len(expressions)
print(f'to compare: always answering "nothing" is exact on {nothing:.3f} of all expressions')

# %% [markdown]
# How to read it: a head is useful where *exact* is above the line "always nothing" and N-acc and T-acc are both well
# above 0. When one of them is near 1 and the other near 0, the head gives the same answer to everything, and no
# threshold will help.
#
# ## Try next
#
# - The zero-shot way with the same threshold sweep: replace `head` by `detector`. Its scores are products of things
#   and relations, so its threshold is another one.
# - Whole files, with caching and mask modes: `smartclip-det ground`; see [configs/toy](../../configs/toy/README.md),
#   "None and many".
# - Training on RefCOCO and gRefCOCO: [configs/smartclip_refexp](../../configs/smartclip_refexp/README.md).
