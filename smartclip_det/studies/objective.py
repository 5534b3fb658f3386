"""The objective alone: alignment with masks against CLIP with perfect perception, in about a minute per run.

An image is its list of objects, given as one-hot facts (shape, colour, size, texture of the toy world); a caption is a
list of phrases that omits some of them. Deep sets encode both, so differences come from the loss alone.

Shape letters: B images, A captions, K texts, O objects (or phrases), F facts, D joint embedding.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.mask_modes import RETRIEVAL_MODES
from smartclip_det.core.similarity import binary_masks, masked_cosine, resolve_masks
from smartclip_det.datasets.scene_captions import Speech
from smartclip_det.datasets.toy_world.scenes import COUNTS, SIZES
from smartclip_det.datasets.toy_world.shapes import COLOURS, SHAPES, TEXTURES
from smartclip_det.metrics.query_precision import mean_known, query_precisions, separation
from smartclip_det.models.losses.alignment_loss import AlignmentLoss, bound_scale
from smartclip_det.protocols.stamp import protocol_stamp, write_results

#: One-hot facts of an object: shape, colour, size, texture. The first texture, ``plain``, is never mentioned.
PARTS = (len(SHAPES), len(COLOURS), len(SIZES), len(TEXTURES))
PAIRS = PARTS[0] * PARTS[1]
TEXTURE_CHANCES = (0.7, 0.1, 0.1, 0.1)
#: How much captions say at the start and end of training, as in the one-stage toy configs.
START, END = Speech(), Speech(any_subset=1.0, colour=0.6, size=0.3, texture=0.3)
MEASURES = ("shape", "colour_shape", "held_out", "captions")
#: Negative images for a pair: both facts on different objects, or only one of them.
WRONG = ("unbound", "shape_only", "colour_only")


@dataclass(frozen=True)
class Recipe:
    """Training settings of one model.

    Attributes:
        masks: mask mode of the loss; ``off`` for CLIP.
        text_norm: text norm in training and scoring.
        sparsity: weight of the mask density, relative to the sum of both cross-entropies.
        ramp: fraction of the steps over which the sparsity weight ramps up.
        mask_bias: initial bias of the mask logits.
        mask_rate: learning rate of the mask network, relative to the rest.
        embed_dim: D.
        longer: multiplier of the number of steps.
        counts: probabilities of 1, 2, ... objects.
    """

    masks: str = "hard"
    text_norm: str = "masked"
    sparsity: float = 0.1
    ramp: float = 0.0
    mask_bias: float = 0.0
    mask_rate: float = 1.0
    embed_dim: int = 128
    longer: int = 1
    counts: tuple[float, ...] = COUNTS


_CLIP, _MASKS = Recipe(masks="off"), Recipe()
_CROWD = (0.0, 0.0, 0.2, 0.2, 0.2, 0.2, 0.2)
RECIPES: dict[str, Recipe] = {
    "clip": _CLIP,
    "masks": _MASKS,
    "full-norm": replace(_MASKS, text_norm="full"),
    "open": replace(_MASKS, mask_bias=2.0),
    "open-ramp": replace(_MASKS, mask_bias=2.0, ramp=0.5),
    "rate-x3": replace(_MASKS, mask_rate=3.0),
    "rate-x0.3": replace(_MASKS, mask_rate=0.3),
    "sparsity-0.02": replace(_MASKS, sparsity=0.02),
    "sparsity-0.4": replace(_MASKS, sparsity=0.4),
    "hard-concrete": replace(_MASKS, masks="hard_concrete"),
    "clip-512": replace(_CLIP, embed_dim=512),
    "masks-512": replace(_MASKS, embed_dim=512),
    "clip-longer": replace(_CLIP, longer=3),
    "masks-longer": replace(_MASKS, longer=3),
    "clip-crowd": replace(_CLIP, counts=_CROWD),
    "masks-crowd": replace(_MASKS, counts=_CROWD),
}


class Things(NamedTuple):
    """Objects of images, or phrases of captions: one-hot ``facts [B, O, F]``, and which exist, ``there [B, O]``."""

    facts: Tensor
    there: Tensor

    def part(self, index: int) -> Tensor:
        """``[B, O, n]`` facts of one kind (0 shape, 1 colour, 2 size, 3 texture) of existing objects."""
        return self.facts.split(PARTS, dim=2)[index] * self.there.unsqueeze(2)

    def summed(self, values: Tensor) -> Tensor:
        """``[B, n]`` sums of the values ``[N, n]`` of all N existing objects."""
        return values.new_zeros(len(self.there), values.shape[1]).index_add(0, self.there.nonzero()[:, 0], values)

    def pairs(self) -> Tensor:
        """``[B, shapes * colours]`` whether one object has both."""
        return torch.einsum("bos,boc->bsc", self.part(0), self.part(1)).flatten(1) > 0


def draw_scenes(count: int, counts: Sequence[float], generator: torch.Generator, without: Tensor) -> Things:
    """Sample scenes; colour-shape pairs in ``without`` do not occur."""
    most = len(counts)
    there = torch.arange(most) <= torch.multinomial(torch.tensor(counts), count, True, generator=generator).unsqueeze(1)
    chances = torch.ones(PAIRS)
    chances[without] = 0
    columns = [chances, torch.ones(PARTS[2]), torch.tensor(TEXTURE_CHANCES)]
    pair, size, texture = (
        torch.multinomial(c, count * most, True, generator=generator).view(count, most) for c in columns
    )
    values = (pair // PARTS[1], pair % PARTS[1], size, texture)
    facts = [functional.one_hot(v, n) for v, n in zip(values, PARTS, strict=True)]
    return Things(torch.cat(facts, dim=2).float(), there)


def draw_captions(scenes: Things, speech: Speech, generator: torch.Generator) -> Things:
    """Sample one caption per scene: some of its objects, each with its shape and some of its other facts."""
    count, most = scenes.there.shape

    def chance(p: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < p

    objects = scenes.there.sum(dim=1)
    any_number = 1 + (torch.rand(count, generator=generator) * objects).long()
    few = (1 + torch.randint(2, (count,), generator=generator)).minimum(objects)
    named = torch.where(chance(speech.any_subset, count), any_number, few)
    order = torch.rand(count, most, generator=generator).masked_fill(~scenes.there, 2.0).argsort(dim=1).argsort(dim=1)
    shape, colour, size, texture = scenes.facts.split(PARTS, dim=2)
    spoken = texture.clone()
    spoken[..., 0] = 0
    mentioned = [
        part * chance(p, count, most, 1)
        for part, p in ((colour, speech.colour), (size, speech.size), (spoken, speech.texture))
    ]
    return Things(torch.cat([shape, *mentioned], dim=2), order < named.unsqueeze(1))


def is_true(captions: Things, scenes: Things) -> Tensor:
    """``[B, A]`` whether each phrase of a caption matches an object of the image."""
    required = captions.facts.sum(dim=2)[:, None, :, None]
    fits = torch.einsum("apf,bof->abpo", captions.facts, scenes.facts) >= required - 0.5
    phrase = (fits & scenes.there[None, :, None, :]).any(dim=3)
    return (phrase | ~captions.there[:, None]).all(dim=2).t()


class Encoders(nn.Module):
    """Deep sets: an image is a weighted mean of objects, a caption (and its mask) a function of summed phrases."""

    def __init__(self, recipe: Recipe, width: int = 192) -> None:
        super().__init__()
        facts, dim = sum(PARTS), recipe.embed_dim
        self.objects = nn.Sequential(
            nn.Linear(facts, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim)
        )
        self.saliency = nn.Linear(facts, 1)
        self.phrases = nn.Sequential(nn.Linear(facts, width), nn.GELU(), nn.Linear(width, width))
        self.captions = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.text = nn.Linear(width, dim)
        first, last = nn.Linear(width, width), nn.Linear(width, dim)
        nn.init.constant_(last.bias, recipe.mask_bias)
        self.mask = nn.Sequential(first, nn.GELU(), last)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def images(self, scenes: Things) -> Tensor:
        """Encode images, ``[B, D]``."""
        weight = self.saliency(scenes.facts).squeeze(2).masked_fill(~scenes.there, float("-inf")).softmax(dim=1)
        return scenes.summed(self.objects(scenes.facts[scenes.there]) * weight[scenes.there].unsqueeze(1))

    def texts(self, captions: Things) -> tuple[Tensor, Tensor]:
        """``[A, D]`` vectors and mask logits; as in SmartCLIP, no gradient flows from the mask to the text encoder."""
        states = self.captions(captions.summed(self.phrases(captions.facts[captions.there])))
        return self.text(states), self.mask(states.detach())


@dataclass(frozen=True)
class ObjectiveOptions:
    """Options of the study.

    Attributes:
        recipes: recipe names (:data:`RECIPES`).
        seeds: number of seeds, each with its own world and initial weights.
        steps: training steps.
        batch: images per step, with two captions each.
        rate: peak learning rate.
        held_out: number of held-out colour-shape pairs.
        pictures: evaluation images; captions are evaluated on the first 600.
        out: JSON output.
    """

    recipes: Sequence[str] = ("clip", "masks")
    seeds: int = 2
    steps: int = 2000
    batch: int = 128
    rate: float = 2e-3
    held_out: int = 36
    pictures: int = 2000
    out: Path = Path("work_dirs/objective.json")


def held_out_pairs(count: int, seed: int) -> Tensor:
    """Sample the colour-shape pairs that training never shows."""
    return torch.randperm(PAIRS, generator=torch.Generator().manual_seed(seed + 100))[:count]


def train(recipe: Recipe, task: ObjectiveOptions, seed: int, label: str = "") -> Encoders:
    """Train one model; images, captions and their order depend only on the seed."""
    torch.manual_seed(seed)
    encoders = Encoders(recipe)
    loss = AlignmentLoss(
        recipe.masks, scale="learned", alignment_weight=1.0, sparsity_weight=recipe.sparsity, text_norm=recipe.text_norm
    )
    groups: dict[str, list[Tensor]] = {"mask": [], "rest": []}
    for name, value in encoders.named_parameters():
        if name != "logit_scale":
            groups["mask" if name.startswith("mask.") else "rest"].append(value)
    rows: list[dict[str, Any]] = [
        {"params": groups["rest"]},
        {"params": groups["mask"], "lr": task.rate * recipe.mask_rate},
        {"params": [encoders.logit_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(rows, lr=task.rate, weight_decay=0.05)
    steps = task.steps * recipe.longer
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / (0.08 * steps)) * (0.5 + 0.5 * math.cos(math.pi * i / steps))
    )
    generator, without = torch.Generator().manual_seed(seed + 5), held_out_pairs(task.held_out, seed)
    for step in trange(steps, desc=label, leave=False):
        scenes = draw_scenes(task.batch, recipe.counts, generator, without)
        images, speech = encoders.images(scenes), START.towards(END, min(1.0, step / (0.6 * steps)))
        loss.sparsity_weight = recipe.sparsity * (min(1.0, step / (recipe.ramp * steps)) if recipe.ramp else 1.0)
        total = images.new_zeros(())
        for _ in range(2):
            losses = loss(images, *encoders.texts(draw_captions(scenes, speech, generator)), encoders.logit_scale)
            total = total + sum(v for k, v in losses.items() if k.startswith("loss")) / 2
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(encoders.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bound_scale(encoders.logit_scale)
    return encoders.eval()


def single_phrases(facts: Tensor) -> Things:
    """Build texts of one phrase each from facts ``[K, F]``."""
    return Things(facts.unsqueeze(1), torch.ones(len(facts), 1, dtype=torch.bool))


@torch.no_grad()
def measure(encoders: Encoders, recipe: Recipe, task: ObjectiveOptions, seed: int) -> dict[str, Any]:
    """Measure average precision over all matching images by mask mode, use of dimensions, and confusions."""
    generator, without = torch.Generator().manual_seed(999), held_out_pairs(task.held_out, seed)
    scenes = draw_scenes(task.pictures, recipe.counts, generator, without[:0])
    some = Things(scenes.facts[:600], scenes.there[:600])
    captions = draw_captions(some, END, generator)
    shapes = torch.eye(PARTS[0], sum(PARTS))
    pairs = shapes.repeat_interleave(PARTS[1], dim=0)
    pairs[torch.arange(PAIRS), PARTS[0] + torch.arange(PAIRS) % PARTS[1]] = 1
    images, has_pair = encoders.images(scenes), scenes.pairs()
    has_shape = scenes.part(0).amax(dim=1) > 0
    queries = {
        "shape": (single_phrases(shapes), images, has_shape),
        "colour_shape": (single_phrases(pairs), images, has_pair),
        "captions": (captions, images[:600], is_true(captions, some)),
    }
    results: dict[str, Any] = {}
    modes = ("off",) if recipe.masks == "off" else RETRIEVAL_MODES
    for what, (texts, vectors, truth) in queries.items():
        embeds, logits = encoders.texts(texts)
        masks = binary_masks(logits.sigmoid())
        names = [f"{what} {n}" for n in range(len(masks))]
        for mode in modes:
            scores = masked_cosine(vectors, embeds, resolve_masks(masks, mode, names), text_norm=recipe.text_norm)
            row = results.setdefault(mode, {})
            precisions = query_precisions(truth.numpy(), scores.numpy())
            row[what] = mean_known(precisions)
            if what == "colour_shape":
                row["held_out"] = mean_known(precisions[without.numpy()])
                if mode == modes[0]:
                    results["auc"] = confusions(scores, scenes)
        if what == "colour_shape" and "hard" in modes:
            results["density"], results["never_on"] = float(masks.mean()), float((masks.sum(dim=0) == 0).float().mean())
    return results


def confusions(scores: Tensor, scenes: Things) -> dict[str, float]:
    """Probability that an image with the pair outranks one of :data:`WRONG`, averaged over pairs; ties count half."""
    shape, colour = ((scenes.part(i).amax(dim=1) > 0) for i in (0, 1))
    right = scenes.pairs()
    both = (shape[:, :, None] & colour[:, None]).flatten(1)
    wrong = (
        both & ~right,
        (shape[:, :, None] & ~colour[:, None]).flatten(1),
        (~shape[:, :, None] & colour[:, None]).flatten(1),
    )
    out = {}
    for name, others in zip(WRONG, wrong, strict=True):
        columns = zip(right.t().numpy(), others.t().numpy(), scores.t().numpy(), strict=True)
        chances = np.array([separation(r[:, None], o[:, None], v[:, None]) for r, o, v in columns])
        out[name] = mean_known(np.where(chances < 0, np.nan, chances))
    return out


def mean_of(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return means over seeds, per key."""
    return {
        k: mean_of([f[k] for f in results]) if isinstance(v, Mapping) else statistics.fmean(f[k] for f in results)
        for k, v in results[0].items()
    }


def compare(task: ObjectiveOptions) -> dict[str, list[dict[str, Any]]]:
    """Train, measure and write; lines are printed for each recipe.

    Returns:
        Results of each seed, by recipe.

    Raises:
        UserError: for sizes that are too small, and unknown recipes.
    """
    if task.seeds < 1 or task.steps < 2 or task.batch < 2 or task.pictures < 600 or not 1 <= task.held_out < PAIRS:
        raise UserError(f"--seeds must be at least 1, --steps and --batch 2, --held-out from 1 to {PAIRS - 1}.")
    chosen = {n: RECIPES[check_choice("recipe", n, RECIPES)] for n in dict.fromkeys(task.recipes)}
    results: dict[str, list[dict[str, Any]]] = {}
    print("recipe         masks      shape  col+sh held   capt.    density, AUC unbound")
    for name, recipe in chosen.items():
        results[name] = [
            measure(train(recipe, task, seed, f"{name}, seed {seed}"), recipe, task, seed) for seed in range(task.seeds)
        ]
        m = mean_of(results[name])
        for mode in (k for k in RETRIEVAL_MODES if k in m):
            own = mode == next(iter(m))
            more = f"   {m.get('density', 1):.2f}, {m['auc']['unbound']:.3f}" if own else ""
            print(f"{name:14s} {mode:9s} " + " ".join(f"{m[mode][k]:6.3f}" for k in MEASURES) + more, flush=True)
    facts = {k: v for k, v in asdict(task).items() if k not in ("recipes", "out")}
    stamp = protocol_stamp(
        "objective",
        **facts,
        recipes={n: asdict(r) for n, r in chosen.items()},
        metric="average precision over all matching images",
    )
    write_results(task.out, stamp, {n: mean_of(f) for n, f in results.items()}, by_seed=results)
    return results
