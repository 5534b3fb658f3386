# %% [markdown]
# # What a mask does
#
# What you will learn:
#
# - what a text bank holds: a vector and a mask for each text,
# - how the masked cosine is computed, by hand in three lines,
# - how to tell whether a mask matters: the controls,
# - which texts share dimensions, and where in a picture a text matches.
#
# Everything here runs on a CPU in well under a minute, on the weights of `make toy` (or `make toy QUICK=1`, whose
# models have learned little: read how the numbers are compared, not the numbers).

# %%
import json

import torch
from PIL import Image

from smartclip_det import Predictor, SmartCLIP, masked_cosine
from smartclip_det.apis.toy_run import find_toy_run
from smartclip_det.probing.mask_statistics import expected_jaccard, jaccard
from smartclip_det.visualization import draw_heatmap, draw_mask_strip, sheet

run = find_toy_run()
print("A quick run: the models have learned little." if run.quick else "A full run.")

# %% [markdown]
# ## A text becomes a vector and a mask
#
# CLIP turns a text into one vector and compares it with the vector of a picture. A picture shows several things, and
# a text speaks of one of them. SmartCLIP computes a second thing from the text: a binary mask over the D dimensions
# of the vectors. A text is compared with a picture in the dimensions that its mask keeps, and what the others say
# about the rest of the picture does not count.

# %%
towers = SmartCLIP.from_checkpoint(run.checkpoint("smartclip"))
texts = ["a star", "a red star", "a blue star", "a heart", "a red heart", "a blue heart"]
bank = towers.encode_text(texts)
print("vectors:", tuple(bank.embeds.shape), " masks:", tuple(bank.masks.shape))
print("values in the masks:", bank.masks.unique().tolist())

# %% [markdown]
# One row is one text, dark is a dimension that its mask keeps, and the number is the share that it keeps.

# %%
draw_mask_strip(bank.masks.numpy(), texts, cell=3)

# %% [markdown]
# ## The masked cosine by hand
#
# We need vectors of image regions. `Predictor.from_pretrained` with `boxes=None` takes towers alone and boxes that
# you give; `embed` returns one vector for each box. We cut out the annotated objects of the first pictures of the
# validation set.

# %%
predictor = Predictor.from_pretrained(
    run.checkpoint("smartclip"),
    boxes=None,
    regions="crop",
    crop_context=2.0,
    policy={"text_norm": "masked"},
    templates=["{article} {}"],
    use_cache=False,
    device="cpu",
)
truth = json.loads((run.data / "annotations/instances_val.json").read_text())
shape_of = {c["id"]: c["name"] for c in truth["categories"]}
objects = {}
for a in truth["annotations"]:
    objects.setdefault(a["image_id"], []).append(a)


def open_picture(info):
    return Image.open(run.data / "images/val" / info["file_name"]).convert("RGB")


def corners(annotation):
    x, y, width, height = annotation["bbox"]
    return [x, y, x + width, y + height]


def phrase(*words):
    text = " ".join(words)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


infos = [i for i in truth["images"] if i["id"] in objects][:80]
vectors = torch.cat(
    [torch.from_numpy(predictor.embed([corners(a) for a in objects[i["id"]]], image=open_picture(i))) for i in infos]
)
shown = [a for i in infos for a in objects[i["id"]]]
print("one vector for each object:", tuple(vectors.shape))

# %% [markdown]
# The score of a region vector v and a text t with mask m is the cosine of v in the kept dimensions with t. These
# towers were trained with the text masked as well (`text_norm="masked"`); the published SmartCLIP keeps the whole
# text vector (`text_norm="full"`, the default). `masked_cosine` computes the same for all pairs in two matrix
# products.

# %%
name = phrase(shown[0]["attributes"]["colour"], shape_of[shown[0]["category_id"]])
own = towers.encode_text(name)
v, t, m = vectors[0], own.embeds[0], own.masks[0]
print(f"the first object with {name!r}, whose mask keeps {int(m.sum())} of {len(m)} dimensions:")
by_hand = torch.cosine_similarity(v * m, t * m, dim=0)
published = (v * m) @ t / ((v * m).norm() * t.norm())
plain = torch.cosine_similarity(v, t, dim=0)
print(f"by hand       {by_hand:.4f}")
print(f"masked_cosine {masked_cosine(v[None], t[None], m[None], text_norm='masked').item():.4f}")
print(f"published     {published:.4f}  (masked_cosine {masked_cosine(v[None], t[None], m[None]).item():.4f})")
print(f"plain CLIP    {plain:.4f}  (masked_cosine {masked_cosine(v[None], t[None], None).item():.4f})")

# %% [markdown]
# ## Does the mask matter? Ask the controls
#
# A score with a mask that beats a score without one proves little: perhaps any mask would do. Two controls tell:
#
# - `random`: as many dimensions as the text's own mask, drawn at random,
# - `shuffled`: the mask of another text.
#
# The own mask (`hard`) matters where it beats no mask (`off`) and both controls. Below is the share of objects whose
# own name scores best, among all shapes, and among all colours with shapes.

# %%
colours = sorted({a["attributes"]["colour"] for a in truth["annotations"]})
shapes = list(shape_of.values())


def accuracy(names, answers, mode):
    names = towers.encode_text(names)
    scores = masked_cosine(vectors, names.embeds, names.resolved_masks(mode), text_norm="masked")
    right = torch.tensor([names.index_of(a) for a in answers])
    return (scores.argmax(dim=1) == right).float().mean().item()


by_shape = [phrase(shape_of[a["category_id"]]) for a in shown]
by_both = [phrase(a["attributes"]["colour"], shape_of[a["category_id"]]) for a in shown]
print(f"{'mask':10}{'shape':>8}{'colour + shape':>17}")
for mode in ("hard", "off", "random", "shuffled"):
    shape = accuracy([phrase(s) for s in shapes], by_shape, mode)
    both = accuracy([phrase(c, s) for c in colours for s in shapes], by_both, mode)
    print(f"{mode:10}{shape:8.2f}{both:17.2f}")
print(f"{'chance':10}{1 / len(shapes):8.2f}{1 / len(shapes) / len(colours):17.3f}")
print(f"{len(shown)} objects: differences below {2 * (0.5 / len(shown)) ** 0.5:.2f} may be chance.")

# %% [markdown]
# How to read it: look at a column, at `hard` against the three lines below it. If `shuffled` is as good as `hard`,
# the masks of all texts keep about the same dimensions, and it is not the text's own mask that helps. One training
# run and some hundred objects do not settle such a question; `smartclip-det study grid` asks it over several seeds,
# with intervals.
#
# ## Which texts share dimensions?
#
# The overlap of two masks is the share of dimensions that both keep among those that either keeps (Jaccard).
# Independent masks that keep half of the dimensions share a third, so compare with that level (`chance`), not with 0.

# %%
pairs = {
    "same shape, other colour": ("a red star", "a blue star"),
    "same colour, other shape": ("a red star", "a red heart"),
    "neither": ("a red star", "a blue heart"),
    "a shape and the same with a colour": ("a star", "a red star"),
}
for what, (first, second) in pairs.items():
    a, b = (bank.masks[[bank.index_of(text)]] for text in (first, second))
    print(f"{what:38}{jaccard(a, b).item():.2f}   chance {expected_jaccard(a, b):.2f}")

# %% [markdown]
# Overlaps far above chance everywhere mean that there are dimensions that most texts keep; an own part of each text
# shows in lower overlaps where the words differ. `smartclip-det study masks` computes these tables for whole
# vocabularies.
#
# ## Where does a text match?
#
# The towers also give one vector for each cell of the picture. `explain` returns the masked cosine of every cell with
# a text: red is the highest value of a map. Left with the text's mask, right without. Compare where the red is, not
# how red: each map has its own scale.

# %%
plain_predictor = Predictor.from_pretrained(
    run.checkpoint("smartclip"), boxes=None, masks="off", use_cache=False, device="cpu"
)
info = next(
    i
    for i in truth["images"]
    if len({(a["attributes"]["colour"], a["category_id"]) for a in objects.get(i["id"], [])}) == 2
    and len({a["attributes"]["colour"] for a in objects[i["id"]]}) == 2
)
picture = open_picture(info)
large = picture.resize((220, 220 * picture.height // picture.width), Image.Resampling.NEAREST)
for one in (predictor, plain_predictor):
    one.set_image(picture, boxes=[corners(a) for a in objects[info["id"]]])
panels = []
for a in objects[info["id"]][:2]:
    text = phrase(a["attributes"]["colour"], shape_of[a["category_id"]])
    print("row", len(panels) // 3 + 1, "-", text)
    panels += [large, *(draw_heatmap(large, one.explain(text).similarity) for one in (predictor, plain_predictor))]
sheet(panels, columns=3)

# %% [markdown]
# ## Try next
#
# - Put your own phrases into `texts`: which dimensions does "a star and a heart" keep, compared with those of "a
#   star" and of "a heart"?
# - Use the published score: leave `text_norm` out in `accuracy`.
# - Masks are a choice of scoring, not of weights: `Predictor.from_config(..., policy={"mask_mode": "off"})` switches
#   them off in a detector.
