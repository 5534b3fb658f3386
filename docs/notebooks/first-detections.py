# %% [markdown]
# # First detections
#
# What you will learn:
#
# - how to open a detector and ask it for any names,
# - what an answer holds, and how to take from it what you need,
# - what a score means, and why it does not change with the other names,
# - what costs time: the picture, not the names.
#
# Everything here runs on a CPU in well under a minute, on the weights and the drawn scenes of `make toy` (or `make
# toy QUICK=1`, whose models have learned little: follow the calls, and do not judge the answers).

# %%
import json
import time

from PIL import Image

from smartclip_det import Predictor
from smartclip_det.apis.toy_run import find_toy_run

run = find_toy_run()
print("A quick run: the models have learned little." if run.quick else "A full run.")

# %% [markdown]
# ## Open a detector
#
# A predictor is a config and a checkpoint. The detector's heads were trained on a frozen pair of CLIP towers, which
# have a file of their own: `towers.checkpoint`. `templates` is how a name becomes a text: here "star" becomes "a
# star", as in the captions of this world.

# %%
predictor = Predictor.from_config(
    "toy/open-vocab-rcnn_smartclip-toy_toy",
    run.checkpoint("detector"),
    cfg_options={"towers.checkpoint": run.checkpoint("smartclip")},
    templates=["{article} {}"],
    device="cpu",
)

# %% [markdown]
# ## Ask for names
#
# We take the first validation scene with three objects. It is 128 pixels wide, so we enlarge it to be able to read
# what is drawn on it; the detector resizes every picture to its own size anyway.

# %%
scenes = json.loads((run.data / "annotations/scenes_val.json").read_text())
number, scene = next((n, s) for n, s in enumerate(scenes) if len(s["objects"]) == 3 and not s["grey"])
picture = Image.open(run.data / f"images/val/{number:06d}.jpg").convert("RGB")
picture = picture.resize((512, 512 * picture.height // picture.width), Image.Resampling.NEAREST)

there = sorted({o["shape"] for o in scene["objects"]})
absent = [s for s in ("star", "arrow", "ring") if s not in there][:1]
print("In the scene:", ", ".join(there), "- and asked for as well:", ", ".join(absent))

# %%
predictor.set_image(picture)
found = predictor.detect(there + absent)
found.top(3).plot()

# %% [markdown]
# ## What an answer holds
#
# `detect` returns `Detections`, best first: boxes in pixels of the picture (x1, y1, x2, y2), scores from 0 to 1, and
# labels that index the names that you gave. In a notebook, a line with `found` alone shows the picture and a table.

# %%
print(found.top(6).to_pandas().to_string(float_format="%.2f"))

# %% [markdown]
# Take from it by position, by name, by score, or without overlaps:

# %%
best = found[0]
print(f"best: {best.name}, score {best.score:.2f}, box {[round(v) for v in best.box]}")
print("first two:", found[:2])
print(f"of one name: {found.of(there[0])}")
print("no two boxes of any name on one object:", found.nms(0.5, across_names=True))
for threshold in (0.1, 0.3, 0.5):
    print(f"score of {threshold} or more:", found.above(threshold))

# %% [markdown]
# **Which threshold?** A score is the probability of a name against background, as far as the model knows. There is no
# threshold that is right for every model and every name: a name that the model knows well gets high scores, an
# unusual one low scores in the right place. With some labelled pictures, `smartclip-det calibrate` chooses one
# threshold for each name, and `above` takes those, too: `found.above({"star": 0.3, "ring": 0.4})`.
#
# ## A score does not depend on the other names
#
# Ask for one name alone, then for the same name among others: the boxes and scores of that name stay the same. A
# softmax over the vocabulary would change them with every name added. The threshold that you chose for a name thus
# stays valid when your list of names grows.

# %%
alone = predictor.detect([there[0]])
among_others = predictor.detect([there[0], "pentagon", "green bolt", "large thing"], max_detections=1000).of(there[0])
count = min(len(alone), len(among_others))
change = abs(alone.scores[:count] - among_others.scores[:count]).max() if count else 0.0
print(f"{count} boxes of {there[0]!r}, largest change of a score: {change:.1e}")

# %% [markdown]
# ## Names are texts
#
# No list of classes is built in. A colour with a shape, or a colour alone, is a name like any other; what is new
# costs one run of the text tower and no training. Colours with shapes are harder than shapes: the model must tell
# which colour belongs to which shape.

# %%
phrases = list(dict.fromkeys(f"{o['colour']} {o['shape']}" for o in scene["objects"]))
predictor.detect(phrases).nms(0.5, across_names=True).top(3).plot()

# %% [markdown]
# ## What costs time
#
# `set_image` encodes the picture; every `detect` after that compares vectors. `set_vocabulary` encodes names once and
# keeps them for the calls that give none. Read the three times against each other; they depend on your machine.

# %%
colours = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black"]
shapes = sorted({o["shape"] for s in scenes for o in s["objects"]})
names = [f"{c} {s}" for c in colours for s in shapes]


def milliseconds(call):
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


print(f"{len(names)} names encoded, once: {milliseconds(lambda: predictor.set_vocabulary(names)):.0f} ms")
print(f"a picture encoded: {milliseconds(lambda: predictor.set_image(picture)):.0f} ms")
print(f"detect with 3 names: {milliseconds(lambda: predictor.detect(names[:3])):.0f} ms (their texts included)")
print(f"detect with all {len(names)} names: {milliseconds(predictor.detect):.0f} ms")

# %% [markdown]
# ## Many pictures, and other tools
#
# `detect_images` takes a folder, a pattern, a list or a video, and yields the answers one after the other.

# %%
pictures = [run.data / f"images/val/{n:06d}.jpg" for n in range(8)]
for answer in predictor.detect_images(pictures, ["circle", "square", "star"], batch_size=4):
    print(answer.above(0.3))

# %% [markdown]
# An answer goes to the formats of other tools: COCO results, YOLO labels, pandas, JSON, and `to_supervision()` for
# trackers and annotators.

# %%
print(found.top(1).to_coco(image_id=7))
print(found.top(2).to_yolo(), end="")

# %% [markdown]
# ## With real weights
#
# On photographs, no training is needed to begin with: a name of public weights, and boxes of any source. The first
# use downloads the weights.
#
# ```python
# predictor = Predictor.from_pretrained("smartclip-b16", boxes="torchvision")
# predictor.set_image("photo.jpg")
# predictor.detect(["a red mug", "a dog on the left"]).above(0.5).plot()
# ```
#
# ## Try next
#
# - Ask for a shape that is not there, and find the threshold that keeps it out.
# - `predictor.ground("the ring left of the star")` looks for one object by what is around it: see "Grounding with
#   none and many".
# - [From own photographs to an own detector](../own-photographs.md) does all this on your pictures, with numbers.
