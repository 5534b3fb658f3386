"""Benchmark grounding by sentences and proposals per image: the cost of encoding an image, and of each sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.grounding.fusion_head import FusionHead, ImageTokens, TextTokens
from smartclip_det.models.grounding.zero_shot import ZeroShotGrounder
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.studies.benchmarks.measuring import in_turns, seconds_of

#: Token count of a long RefCOCOg sentence.
TOKENS = 20
#: More sentences in one pass would not fit a laptop's memory.
HEAD_SENTENCES = 64


def sentences(count: int) -> list[str]:
    """Generate distinct expressions with a location and a relation."""
    return [f"the small thing {n} left of the large thing {n + 1}" for n in range(count)]


def random_bank(names: list[str], dim: int) -> TextBank:
    """Build a bank of random vectors and masks."""
    g = torch.Generator().manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(len(names), dim, generator=g), dim=1)
    return TextBank(tuple(names), embeds, (torch.rand(len(names), dim, generator=g) > 0.5).float())


@torch.no_grad()
def zero_shot(arch: str, size: int, counts: list[int], proposals: list[int], rounds: int) -> dict[str, Any]:
    """Benchmark zero-shot grounding with dense views and a cached bank: image and region encoding, then scoring."""
    towers = SmartCLIP.from_arch(arch)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8))
    out: dict[str, Any] = {}
    print(
        f"\nzero-shot, {arch} at {size} pixels, dense view, cached bank\nboxes  reading     image s   "
        + "".join(f"{c:>9d} s." for c in counts)
        + "   per sentence, share of image"
    )
    for boxes in proposals:
        corners = rng.random((boxes, 2)) * [500, 380]
        xyxy = np.concatenate([corners, corners + 20 + rng.random((boxes, 2)) * 80], axis=1).tolist()
        encoder = RegionEncoder(towers, dense_size=size)

        def encode(e: RegionEncoder = encoder, b: list[list[float]] = xyxy) -> list[dict[str, torch.Tensor]]:
            return ZeroShotGrounder(e).region_vectors(image.copy(), b)

        for reading in ("expression", "both"):
            grounder = ZeroShotGrounder(encoder, reading=reading)
            texts = list(dict.fromkeys(t for s in sentences(max(counts)) for t in grounder.texts(s)))
            vectors, bank = encode(), random_bank(texts, towers.config.embed_dim)
            runs: dict[str, Any] = {"image": encode}
            for count in counts:
                queries = sentences(count)
                own = bank.select(list(dict.fromkeys(t for s in queries for t in grounder.texts(s))))
                runs[str(count)] = lambda g=grounder, v=vectors, b=xyxy, a=queries, o=own: g.score(v, b, a, o)
            timings = in_turns(runs, rounds)
            seconds = {k: v["median"] for k, v in timings.items()}
            more = (seconds[str(max(counts))] - seconds[str(min(counts))]) / max(1, max(counts) - min(counts))
            share = more / seconds["image"]
            out[f"{boxes} boxes, {reading}"] = {"seconds": seconds, "share_of_image_per_sentence": share}
            cells = "".join(f"{seconds[str(c)]:11.4f}" for c in counts)
            print(f"{boxes:5d}  {reading:10s} {seconds['image']:8.3f}   {cells}   {share:10.5%}")
    return out


@torch.no_grad()
def trained_head(arch: str, size: int, counts: list[int], rounds: int) -> dict[str, Any]:
    """Benchmark a fusion head of CLIP-VG's size: parameter counts, and sentences in one pass."""
    towers = SmartCLIP.from_arch(arch)
    c = towers.config
    grid = size // c.patch_size
    head = FusionHead(
        channels=4 * c.vision_width,
        text_width=c.text_width,
        embed_dim=c.embed_dim,
        grid=grid,
        text_length=c.context_length,
    ).eval()
    count = sum(p.numel() for p in head.parameters())
    pixels = torch.randn(1, 3, size, size)
    layers = tuple(round(n * (c.vision_layers - 1) / 3) for n in range(4))

    def encode() -> Any:
        return towers.image_tower.features(pixels, taps=layers, dense_mode="value")

    features = encode()
    images = ImageTokens(torch.cat(features.taps, dim=1), features.dense)
    out: dict[str, Any] = {"trained_parameters": count, "tower_parameters": sum(p.numel() for p in towers.parameters())}
    runs: dict[str, Any] = {"image": encode}
    for k in counts:
        texts = TextTokens(
            torch.randn(k, TOKENS, c.text_width),
            torch.ones(k, TOKENS, dtype=torch.bool),
            torch.randn(k, c.embed_dim),
            torch.ones(k, c.embed_dim),
        )
        runs[str(k)] = lambda t=texts, n=k: head(images, t, torch.zeros(n, dtype=torch.long))
    seconds = {k: v["median"] for k, v in in_turns(runs, rounds).items()}
    out["seconds"] = seconds
    print(
        f"\ntrained head, {arch} at {size} pixels: {count / 1e6:.1f} M trainable parameters, "
        f"{out['tower_parameters'] / 1e6:.1f} M frozen; image {seconds['image']:.3f} s; sentences "
        + ", ".join(f"{k}: {seconds[str(k)]:.3f} s" for k in counts)
    )
    return out


def run(args: Any) -> dict[str, Any]:
    """Benchmark zero-shot grounding at the first size, the head at the last, and the parsing of sentences."""
    arch, size = args.arch or "SmartCLIP-B-16", args.sizes[0]
    grounder = ZeroShotGrounder(RegionEncoder(SmartCLIP.from_arch("SmartCLIP-tiny")), reading="both")
    parsing = seconds_of(lambda: [grounder.texts(s) for s in sentences(1000)])
    print(f"parsing 1,000 sentences by rules: {parsing:.3f} s")
    heads = [c for c in args.sentences if c <= HEAD_SENTENCES] or [min(args.sentences)]
    if len(heads) < len(args.sentences):
        print(f"the trained head is benchmarked on at most {HEAD_SENTENCES} sentences: {heads}")
    return {
        "zero_shot": zero_shot(arch, size, args.sentences, args.proposals, args.rounds),
        "trained_head": trained_head(arch, args.sizes[-1], heads, args.rounds),
        "reading_1000_sentences": parsing,
    }
