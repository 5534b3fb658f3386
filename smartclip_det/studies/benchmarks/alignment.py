"""Benchmark alignment training: loss head against the broadcast form, whole steps against CLIP, and the data loader.

Needs torch and MMEngine only; compares with open_clip's ``ClipLoss`` if installed, else with CLIP's loss in plain
torch.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.similarity import straight_through
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.losses import AlignmentLoss
from smartclip_det.models.towers.tokenizer import END, START
from smartclip_det.studies.benchmarks.measuring import in_turns, show

#: Mean token count of a random caption prefix of ShareGPT4V, at context length 248.
PREFIX_TOKENS = 105
#: Dense bf16 peak of known GPUs, FLOP/s.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "A800": 312e12}


def run(options: Any) -> dict[str, Any]:
    """Run all requested measurements."""
    out: dict[str, Any] = {"head": head(options.head, options.dim, options.rounds, options.device)}
    out["step"] = steps(options)
    if options.images:
        out["loader"] = loader(options)
    return out


# --- the head ---------------------------------------------------------------------------------------------------------


def broadcast_form(images: Tensor, texts: Tensor, logits: Tensor) -> Tensor:
    """The released implementation: every image with every mask as one tensor, in both directions."""
    masks = straight_through(logits.sigmoid())
    texts = functional.normalize(texts, dim=-1)
    target = torch.arange(len(images), device=images.device)
    rows = 100 * (functional.normalize(images[:, None] * masks[None], dim=-1) * texts[None]).sum(-1)
    columns = 100 * (functional.normalize(images[None] * masks[:, None], dim=-1) * texts[:, None]).sum(-1)
    loss = functional.cross_entropy(rows, target) + functional.cross_entropy(columns, target)
    return 10 * loss + 2 * masks.mean()


class SavedBytes:
    """Count the bytes that autograd saves for the backward pass, each storage once."""

    def __enter__(self) -> SavedBytes:
        """Start counting."""
        self._seen: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)
        self._hooks.__enter__()
        return self

    def _pack(self, x: Tensor) -> Tensor:
        self._seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        self._hooks.__exit__(*error)
        self.mib = sum(self._seen.values()) / 2**20


def head(batch: int, dim: int, rounds: int, device: str) -> dict[str, Any]:
    """Benchmark loss and backward pass on given features: ours, ours tiled, CLIP's, and the broadcast form."""
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(batch, dim, generator=g).to(device).requires_grad_() for _ in range(3)]
    scale = torch.tensor(4.6052, device=device)
    ours, tiled = AlignmentLoss(), AlignmentLoss(tile=max(1, batch * batch // 16))
    clip = AlignmentLoss("off", alignment_weight=0.5)

    def total(loss: AlignmentLoss, v: Tensor, t: Tensor, m: Tensor) -> Tensor:
        return sum((x for k, x in loss(v, t, m, scale).items() if k.startswith("loss")), torch.zeros((), device=device))

    forms: dict[str, Callable[[], Tensor]] = {
        "two products": lambda: total(ours, *given),
        "two products, in tiles": lambda: total(tiled, *given),
        "plain CLIP": lambda: total(clip, *given),
        "broadcast form": lambda: broadcast_form(*given),
    }

    def work(form: Callable[[], Tensor]) -> Callable[[], None]:
        def once() -> None:
            form().backward()
            for x in given:
                x.grad = None

        return once

    rows = in_turns({name: work(form) for name, form in forms.items()}, rounds)
    for name, form in forms.items():
        with SavedBytes() as saved:
            form()
        rows[name]["saved_mib"] = saved.mib
    show(f"head, B = {batch}, D = {dim}: loss and backward", rows, "two products")
    base, own = rows["broadcast form"], rows["two products"]
    facts = {"time_ratio": base["median"] / own["median"], "saved_ratio": base["saved_mib"] / own["saved_mib"]}
    print(
        f"saved for backward: {own['saved_mib']:.1f} MiB, broadcast form {base['saved_mib']:.0f} MiB; "
        f"{facts['saved_ratio']:.0f}x less memory, {facts['time_ratio']:.0f}x less time"
    )
    return {"rows": rows, **facts}


# --- whole steps ------------------------------------------------------------------------------------------------------


def caption_tokens(count: int, context: int, mean: int, seed: int = 0) -> Tensor:
    """``[count, context]`` random token ids with lengths spread around a mean, padded to the context length."""
    g = torch.Generator().manual_seed(seed)
    out = torch.zeros(count, context, dtype=torch.long)
    # Caption prefixes are roughly uniform in length, from one sentence to twice the mean.
    lengths = torch.randint(12, min(context, 2 * mean - 12) + 1, (count,), generator=g) if mean < context else None
    for n in range(count):
        length = context if lengths is None else int(lengths[n])
        out[n, :length] = torch.randint(1, START, (length,), generator=g)
        out[n, 0], out[n, length - 1] = START, END
    return out


def clip_loss(device: str) -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return open_clip's ``ClipLoss``, or an equivalent in plain torch if open_clip is not installed."""
    try:
        from open_clip.loss import ClipLoss
    except ImportError:
        target_of = torch.arange

        def plain(images: Tensor, texts: Tensor) -> Tensor:
            logits = 100 * images @ texts.t()
            target = target_of(len(images), device=device)
            return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.t(), target)) / 2

        return "CLIP's loss (open_clip not installed)", plain
    module = ClipLoss()
    scale = torch.tensor(100.0, device=device)
    return "open_clip ClipLoss", lambda images, texts: module(images, texts, scale)


def our_step(
    model: SmartCLIPAlignment, pixels: Tensor, bf16: bool, tokens: Tensor, chunks: int, pad: str
) -> Callable[[], None]:
    """Return a function that runs forward and backward pass of our alignment."""

    def once() -> None:
        model.towers.mask_network.mask_pad = pad
        model.text_chunks = chunks
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            seen, texts = model._see(pixels), model._read(tokens)
        losses = model._contrast(seen.pooled, *texts, 1)
        sum(v for k, v in losses.items() if k.startswith("loss")).backward()
        model.zero_grad(set_to_none=True)

    return once


def clip_step(
    model: SmartCLIPAlignment, loss: Callable[[Tensor, Tensor], Tensor], pixels: Tensor, bf16: bool, tokens: Tensor
) -> Callable[[], None]:
    """Return a function that runs forward and backward pass of the same towers with CLIP's loss."""
    towers = model.towers

    def once() -> None:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            images, texts = towers.encode_image(pixels), towers.text_tower(tokens).embeds
        loss(functional.normalize(images.float(), dim=-1), functional.normalize(texts.float(), dim=-1)).backward()
        model.zero_grad(set_to_none=True)

    return once


def steps(options: Any) -> dict[str, Any]:
    """Benchmark whole training steps of one batch on the same towers, interleaved."""
    device, batch = options.device, options.batch
    models = {
        "ours": SmartCLIPAlignment({"arch": options.arch, "seed": 0}).to(device).train(),
        # The same towers without the mask network.
        "clip": SmartCLIPAlignment({"arch": options.arch, "seed": 0}, loss={"mask_mode": "off"}).to(device).train(),
    }
    context = models["ours"].towers.config.context_length
    side = models["ours"].towers.config.image_size
    pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device)
    whole = caption_tokens(batch, context, context).to(device)
    real = caption_tokens(batch, context, PREFIX_TOKENS if context > 200 else context // 2).to(device)
    name, loss = clip_loss(device)

    ours = functools.partial(our_step, models["ours"], pixels, options.bf16)
    theirs = functools.partial(clip_step, models["clip"], loss, pixels, options.bf16)
    variants = {
        f"{name}, {context} tokens": theirs(whole),
        f"ours, {context} tokens": ours(whole, 1, "include"),
        f"{name}, captions padded to {context}": theirs(real),
        "ours, captions, mask_pad include": ours(real, 1, "include"),
        f"ours, captions, {options.chunks} chunks, mask_pad ignore": ours(real, options.chunks, "ignore"),
    }
    rows = in_turns(variants, options.rounds)
    for label, once in variants.items():
        with SavedBytes() as saved:
            once()
        rows[label]["saved_mib"] = saved.mib
    lengths = real.argmax(dim=1) + 1
    facts = {
        "batch": batch,
        "arch": options.arch,
        "bf16": options.bf16,
        "mean_tokens": float(lengths.float().mean()),
        "equal_length_ratio": _ratio(rows, 1, 0),
        "real_length_speedup": 1 / _ratio(rows, 4, 2),
        "samples_per_second": batch / rows[list(variants)[4]]["median"],
    }
    facts["head_share"] = head_seconds(models["ours"], batch, options.rounds) / rows[list(variants)[1]]["median"]
    facts.update(utilisation(models["ours"], rows, batch, context, device))
    show(f"training step without optimizer, {options.arch}, batch {batch}", rows, next(iter(variants)))
    print(
        f"at full length {facts['equal_length_ratio']:.3f} x the time of {name}; at {facts['mean_tokens']:.0f} "
        "tokens on "
        f"average {facts['real_length_speedup']:.2f}x as fast as {name} padded to {context}; "
        f"{facts['samples_per_second']:.2f} samples/s; the head is {facts['head_share']:.2%} of a step; "
        f"{facts['utilisation']:.0%} of peak FLOP/s"
    )
    print("saved for backward, MiB: " + ", ".join(f"{n} {r['saved_mib']:.0f}" for n, r in rows.items()))
    return {"rows": rows, **facts}


def head_seconds(model: SmartCLIPAlignment, batch: int, rounds: int) -> float:
    """Time the loss and its backward pass alone, on features of the step's size."""
    device = model.towers.logit_scale.device
    given = [torch.randn(batch, model.towers.config.embed_dim, device=device, requires_grad=True) for _ in range(3)]

    def once() -> None:
        losses = model.loss(*given, model.towers.logit_scale.detach())
        sum(v for k, v in losses.items() if k.startswith("loss")).backward()

    return in_turns({"head": once}, max(5, rounds))["head"]["median"]


def _ratio(rows: dict[str, dict[str, float]], a: int, b: int) -> float:
    names = list(rows)
    return rows[names[a]]["median"] / rows[names[b]]["median"]


def step_flops(config: Any, context: int) -> float:
    """FLOPs of forward and backward (3 x forward) for one pair, counting matrix products only."""

    def tower(width: int, layers: int, length: int) -> float:
        return layers * (24 * length * width**2 + 4 * length**2 * width)

    cells = (config.image_size // config.patch_size) ** 2
    image = tower(config.vision_width, config.vision_layers, cells + 1)
    image += 2 * cells * 3 * config.patch_size**2 * config.vision_width
    text = tower(config.text_width, config.text_layers + config.mask_layers, context)
    return 3 * (image + text)


def utilisation(
    model: SmartCLIPAlignment, rows: dict[str, dict[str, float]], batch: int, context: int, device: str
) -> dict[str, float]:
    """Model FLOP/s of the full-length step, and its share of the GPU's bf16 peak (or of a measured matrix product)."""
    flops = batch * step_flops(model.towers.config, context)
    seconds = rows[list(rows)[1]]["median"]
    peak = next((v for k, v in PEAK_FLOPS.items() if device != "cpu" and k in torch.cuda.get_device_name()), 0.0)
    if not peak:
        a = torch.randn(2048, 2048, device=device)
        timing = in_turns({"product": lambda: a @ a}, 5)["product"]
        peak = 2 * 2048**3 / timing["min"]
    return {"model_flops_per_second": flops / seconds, "utilisation": flops / seconds / peak, "peak_flops": peak}


# --- the loader -------------------------------------------------------------------------------------------------------


def loader(options: Any) -> dict[str, Any]:
    """Images per second from files and from a cache, to see whether data loading is the bottleneck."""
    import tempfile
    import time

    from torch.utils.data import DataLoader

    from smartclip_det.datasets.caption_options import TextOptions
    from smartclip_det.datasets.captions import CaptionDataset
    from smartclip_det.datasets.image_cache import ImageCache

    data = CaptionDataset(
        str(options.captions or options.images), data_root=str(options.images), texts=TextOptions(context_length=248)
    )
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = ImageCache(folder, data.names(), 224, "crop", create=True)
        for n in range(len(data)):
            cache.put(n, data.read_image(n))
        cache.flush()
        for name in ("files", "cache", "files", "cache"):
            data._cache = cache if name == "cache" else None
            # Repeat the images, or starting the workers would dominate the measurement.
            order = list(range(len(data))) * max(1, 400 // len(data))
            begin = time.perf_counter()
            for _ in DataLoader(data, 16, sampler=order, num_workers=options.workers, collate_fn=list):
                pass
            rates.setdefault(name, []).append(len(order) / (time.perf_counter() - begin))
    medians = {k: statistics.median(v) for k, v in rates.items()}
    print(
        f"\nloader, {options.workers} workers: {medians['files']:.0f} images/s from files, "
        f"{medians['cache']:.0f} from a cache ({medians['cache'] / medians['files']:.1f}x)"
    )
    return medians
