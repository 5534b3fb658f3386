"""Do masks recover concepts? A test bed with known latents, where the claims of the theory can be measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.similarity import binary_masks
from smartclip_det.metrics.retrieval import retrieval_metrics
from smartclip_det.models.losses import AlignmentLoss
from smartclip_det.protocols.stamp import protocol_stamp, write_results

KEYS = ("own_block_r2", "other_block_r2", "jaccard", "dimensions_on")
PARTIAL = ("hard", "off", "clip")


@dataclass(frozen=True)
class World:
    """A latent-variable model (arXiv 2507.22264, section 4): images depend on all concepts, captions on some.

    Attributes:
        concepts: number of concepts.
        size: dimensions per concept.
        style: nuisance dimensions of an image, and of a text.
        embed_dim: D of the encoders.
        subsets: captions that occur: ``all`` sets of concepts, or only ``pairs`` (limited support).
        correlation: correlation of neighbouring concepts (dependence).
        noise: standard deviation added to images and texts.
        captions: number of distinct training captions; 0: new ones at each step.
        sparsity: weight of the mask density in the loss.
        modular: apply every caption's mask to every image; False: only the caption's own image.
    """

    concepts: int = 4
    size: int = 2
    style: int = 2
    embed_dim: int = 16
    subsets: str = "all"
    correlation: float = 0.0
    noise: float = 0.0
    captions: int = 0
    sparsity: float = 0.5
    modular: bool = True

    def sets(self) -> list[tuple[int, ...]]:
        """Return the sets of concepts that captions describe."""
        sizes = range(1, self.concepts + 1) if self.subsets == "all" else (2,)
        return [s for n in sizes for s in combinations(range(self.concepts), n)]


#: Harder worlds; each changes one thing.
STRESS: dict[str, World] = {
    "base": World(),
    "pairs of concepts only": World(subsets="pairs"),
    "dependent concepts (0.7)": World(correlation=0.7),
    "2,000 captions": World(captions=2000),
    "noise 0.3": World(noise=0.3),
    "D = 8": World(embed_dim=8),
    "D = 64": World(embed_dim=64),
    "no sparsity": World(sparsity=0.0),
    "not modular": World(modular=False),
}


class Mixing(nn.Module):
    """A fixed random invertible map: orthogonal layers with leaky ReLUs in between."""

    def __init__(self, width: int, generator: torch.Generator, layers: int = 2) -> None:
        super().__init__()
        self.weights = [torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in range(layers)]

    def forward(self, x: Tensor) -> Tensor:
        """``[N, width]`` to ``[N, width]``."""
        for n, weight in enumerate(self.weights):
            x = x @ weight
            if n + 1 < len(self.weights):
                x = functional.leaky_relu(x, 0.2)
        return x


class Nature:
    """Sample latents, images and texts of a world."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.generator = world, torch.Generator().manual_seed(seed)
        content = world.concepts * world.size
        self.of_images = Mixing(content + world.style, self.generator)
        # A caption says which concepts it describes, so the concept indicators are part of the mixed input.
        self.of_texts = Mixing(content + world.concepts + world.style, self.generator)
        self.fixed: tuple[Tensor, Tensor] | None = None
        if world.captions:
            self.fixed = (self.latents(world.captions), self.described(world.captions))

    def latents(self, count: int) -> Tensor:
        """``[N, concepts, size]`` standard normal latents, with the world's correlation of neighbours."""
        w = self.world
        z = torch.randn(count, w.concepts, w.size, generator=self.generator)
        for c in range(1, w.concepts):
            z[:, c] = w.correlation * z[:, c - 1] + (1 - w.correlation**2) ** 0.5 * z[:, c]
        return z

    def described(self, count: int, sets: list[tuple[int, ...]] | None = None) -> Tensor:
        """``[N, concepts]`` concepts that each caption describes, 0 or 1."""
        sets = self.world.sets() if sets is None else sets
        rows = torch.zeros(len(sets), self.world.concepts)
        for n, s in enumerate(sets):
            rows[n, list(s)] = 1
        return rows[torch.randint(len(sets), (count,), generator=self.generator)]

    def _styled(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.randn(len(x), self.world.style, generator=self.generator)], dim=1)

    def _noisy(self, x: Tensor) -> Tensor:
        return x + self.world.noise * torch.randn(x.shape, generator=self.generator)

    def images(self, latents: Tensor) -> Tensor:
        """``[N, content + style]`` images of latents."""
        return self._noisy(self.of_images(self._styled(latents.flatten(1))))

    def texts(self, latents: Tensor, described: Tensor) -> Tensor:
        """``[N, content + concepts + style]`` texts that describe some concepts of the latents."""
        content = torch.cat([(latents * described.unsqueeze(-1)).flatten(1), described], dim=1)
        return self._noisy(self.of_texts(self._styled(content)))

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Sample images and texts of a training step."""
        if self.fixed is None:
            z, described = self.latents(count), self.described(count)
        else:
            rows = torch.randperm(len(self.fixed[0]), generator=self.generator)[:count]
            z, described = self.fixed[0][rows], self.fixed[1][rows]
        return self.images(z), self.texts(z, described)


def network(inputs: int, outputs: int, width: int = 256) -> nn.Sequential:
    """MLP with two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs)
    )


class Encoders(nn.Module):
    """Image encoder, text encoder and mask network."""

    def __init__(self, nature: Nature) -> None:
        super().__init__()
        w = nature.world
        content = w.concepts * w.size
        self.image = network(content + w.style, w.embed_dim)
        self.text = network(content + w.concepts + w.style, w.embed_dim)
        self.mask = network(content + w.concepts + w.style, w.embed_dim)

    def masks(self, texts: Tensor) -> Tensor:
        """``[N, D]`` hard masks."""
        return binary_masks(self.mask(texts).sigmoid())


@dataclass(frozen=True)
class IdentifyOptions:
    """Options of the study.

    Attributes:
        seeds: number of seeds, each with its own world and initial weights.
        stress: harder worlds to run as well, by name (:data:`STRESS`).
        steps: training steps.
        batch: pairs per step.
        scale: logit scale.
        rows: images for R2; half of them are used to fit the regression.
        out: JSON output; a ``.png`` of the same name is drawn.
    """

    seeds: int = 3
    stress: Sequence[str] = ()
    steps: int = 2000
    batch: int = 512
    scale: float = 30.0
    rows: int = 2000
    out: Path = Path("work_dirs/identifiability.json")


def train(nature: Nature, task: IdentifyOptions, masked: bool, seed: int, label: str) -> Encoders:
    """Train the encoders of one world with SmartCLIP's loss, or with CLIP's."""
    torch.manual_seed(seed)
    encoders = Encoders(nature)
    loss = AlignmentLoss(
        "hard" if masked else "off",
        modular=nature.world.modular,
        scale=task.scale,
        alignment_weight=1.0,
        sparsity_weight=nature.world.sparsity,
    )
    optimizer = torch.optim.AdamW(encoders.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
    for _ in trange(task.steps, desc=label, leave=False):
        images, texts = nature.batch(task.batch)
        logits = encoders.mask(texts) if masked else None
        losses = loss(encoders.image(images), encoders.text(texts), logits, torch.zeros(()))
        total = sum(v for k, v in losses.items() if k.startswith("loss"))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
    return encoders.eval()


def kernel_r2(inputs: Tensor, targets: Tensor, ridge: float = 1e-3) -> float:
    """Fraction of variance explained by kernel ridge regression on the second half of the rows, clipped at 0.

    Args:
        inputs: ``[N, d]``; the kernel is Gaussian with the median distance as width.
        targets: ``[N, k]``.
        ridge: added to the kernel's diagonal.
    """
    half = len(inputs) // 2
    distance = torch.cdist(inputs.double(), inputs[:half].double())
    kernel = (-(distance**2) / (2 * distance[:half].median().clamp(min=1e-6) ** 2)).exp()
    centre = targets[:half].double().mean(dim=0)
    weights = torch.linalg.solve(kernel[:half] + ridge * torch.eye(half), targets[:half].double() - centre)
    left = targets[half:].double() - (kernel[half:] @ weights + centre)
    around = targets[half:].double() - targets[half:].double().mean(dim=0)
    return max(0.0, float(1 - (left**2).sum() / (around**2).sum()))


@torch.no_grad()
def usual_masks(nature: Nature, encoders: Encoders, count: int = 400) -> dict[tuple[int, ...], Tensor]:
    """Return, per set of concepts, the dimensions ``[D]`` that the masks of most of its captions keep."""
    out = {}
    for n in (1, 2):
        for s in combinations(range(nature.world.concepts), n):
            texts = nature.texts(nature.latents(count), nature.described(count, [s]))
            out[s] = binary_masks(encoders.masks(texts).mean(dim=0)).bool()
    return out


@torch.no_grad()
def identification(nature: Nature, encoders: Encoders, rows: int) -> dict[str, float]:
    """Measure R2 of own and other concepts, and the intersection rule."""
    masks = usual_masks(nature, encoders)
    concepts = range(nature.world.concepts)
    z = nature.latents(rows)
    vectors = encoders.image(nature.images(z))
    own, other, overlaps = [], [], []
    for c in concepts:
        # Cosine scores only see directions, so the kept dimensions are normalised too.
        block = functional.normalize(vectors[:, masks[(c,)]], dim=1)
        for d in concepts:
            r2 = kernel_r2(block, z[:, d]) if block.shape[1] else 0.0
            (own if c == d else other).append(r2)
        rest = [d for d in concepts if d != c]
        for a, b in combinations(rest, 2):
            both = masks[tuple(sorted((c, a)))] & masks[tuple(sorted((c, b)))]
            union = int((both | masks[(c,)]).sum())
            overlaps.append(int((both & masks[(c,)]).sum()) / union if union else 1.0)
    on = statistics.fmean(int(masks[(c,)].sum()) for c in concepts)
    return {
        "own_block_r2": statistics.fmean(own),
        "other_block_r2": statistics.fmean(other),
        "jaccard": statistics.fmean(overlaps),
        "dimensions_on": on,
    }


@torch.no_grad()
def partial_retrieval(nature: Nature, encoders: Encoders, masked: bool, images: int = 512) -> float:
    """Recall@1 of texts that omit at least one concept, among all images; ties count against the model."""
    world = nature.world
    sets = [s for s in replace(world, subsets="all").sets() if len(s) < world.concepts]
    z, described = nature.latents(images), nature.described(images, sets)
    texts = nature.texts(z, described)
    masks = encoders.masks(texts) if masked else None
    metrics = retrieval_metrics(encoders.image(nature.images(z)), encoders.text(texts), masks, torch.arange(images))
    return metrics["t2i_r1"]


def measure(world: World, seed: int, task: IdentifyOptions, label: str) -> dict[str, Any]:
    """Train and measure one world and seed."""
    nature = Nature(world, seed)
    ours = train(nature, task, True, seed, f"{label}, SmartCLIP")
    theirs = train(nature, task, False, seed, f"{label}, CLIP")
    partial = {
        "hard": partial_retrieval(nature, ours, True),
        "off": partial_retrieval(nature, ours, False),
        "clip": partial_retrieval(nature, theirs, False),
    }
    return {**identification(nature, ours, task.rows), "partial": partial}


def mean_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds, and standard deviations if there are several."""
    out: dict[str, Any] = {k: statistics.fmean(f[k] for f in results) for k in KEYS}
    out["partial"] = {k: statistics.fmean(f["partial"][k] for f in results) for k in PARTIAL}
    if len(results) > 1:
        out["std"] = {k: statistics.stdev(f[k] for f in results) for k in KEYS}
        out["std"]["partial"] = {k: statistics.stdev(f["partial"][k] for f in results) for k in PARTIAL}
    return out


def identify(task: IdentifyOptions) -> dict[str, list[dict[str, Any]]]:
    """Train, measure and write; a line is printed for each world.

    Returns:
        Results of each seed, by world.

    Raises:
        UserError: for sizes that are too small, and unknown worlds.
    """
    if task.seeds < 1 or task.steps < 1 or task.batch < 2 or task.rows < 20:
        raise UserError("--seeds and --steps must be at least 1, --batch 2 and --rows 20.")
    stress = [*task.stress]
    worlds = {n: STRESS[check_choice("world", n, STRESS)] for n in dict.fromkeys(["base", *stress])}
    results: dict[str, list[dict[str, Any]]] = {}
    print(f"{'world':26s} {'own R2':>7s} {'other':>7s} {'jaccard':>8s} {'dims':>5s}   hard    off     CLIP")
    for name, world in worlds.items():
        results[name] = [measure(world, seed, task, f"{name}, seed {seed}") for seed in range(task.seeds)]
        m = mean_of(results[name])
        recalls = "  ".join(f"{m['partial'][k]:.3f}" for k in PARTIAL)
        print(
            f"{name:26s} {m['own_block_r2']:7.3f} {m['other_block_r2']:7.3f} {m['jaccard']:8.3f} "
            f"{m['dimensions_on']:5.1f}   {recalls}",
            flush=True,
        )
    base = mean_of(results["base"])
    stamp = protocol_stamp(
        "identifiability",
        seeds=task.seeds,
        steps=task.steps,
        batch=task.batch,
        scale=task.scale,
        rows=task.rows,
        retrieval="text to image, recall@1 among 512, ties against",
        world=asdict(STRESS["base"]),
    )
    stress = {n: {"world": asdict(worlds[n]), **mean_of(f)} for n, f in results.items()}
    write_results(task.out, stamp, base, **base, stress=stress, by_seed=results)
    draw({n: mean_of(f) for n, f in results.items()}, task.out.with_suffix(".png"))
    return results


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw bars of identification and retrieval per world."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.45 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    recalls = {k: [r["partial"][k] for r in rows.values()] for k in PARTIAL}
    groups = (
        (left, "identification", {k: [r[k] for r in rows.values()] for k in KEYS[:3]}),
        (right, "recall@1 of partial captions", recalls),
    )
    for axes, title, series in groups:
        for n, (label, values) in enumerate(series.items()):
            axes.barh(
                [y + (n - 1) * 0.27 for y in range(len(rows))], values, height=0.25, label=label.replace("_", " ")
            )
        axes.set(title=title, xlim=(0, 1), yticks=range(len(rows)), yticklabels=list(rows))
        axes.legend(fontsize=8, loc="lower right")
    left.invert_yaxis()
    figure.savefig(path, dpi=120)
