"""Interface of image-text encoders, independent of their family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers.mask_network import token_keep
from smartclip_det.models.towers.smartclip import TextFeatures


class Encoder(Protocol):
    """CLIP-like towers: :class:`SmartCLIP`, and :class:`OpenClipEncoder` for other families.

    Attributes:
        config: sizes. ``image_size``, ``patch_size`` and ``embed_dim`` are numbers; ``mask_pad`` is ``ignore`` or
            ``include``, ``ignore`` for encoders without masks. ``fixed_size=True`` (optional) says that images of
            another size than ``image_size`` are refused.
        logit_scale: logarithm of the learned scale, a tensor; its device is the encoder's.
        dense_modes: values of ``dense_mode``; ``value`` is the default everywhere, so one of them has this name.

    Shape letters: B images, K texts, L tokens, W text width, D joint embedding, h w grid cells.
    """

    config: Any
    logit_scale: Any
    dense_modes: tuple[str, ...]

    @property
    def checkpoint_hash(self) -> str:
        """Hash of the weights, 16 hex digits."""
        ...

    def image_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of RGB in [0, 1]."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` normalised pixels to ``[B, D]``, not normalised."""
        ...

    def encode_dense(self, images: Tensor, dense_mode: str = "value") -> Tensor:
        """``[B, 3, H, W]`` normalised pixels to ``[B, D, h, w]``, not normalised; one cell per patch."""
        ...

    def tokenize(self, texts: str | Sequence[str], *, truncate: bool = False) -> Tensor:
        """``[K, L]`` token ids; with masks, the end token has the largest id of its row."""
        ...

    def forward_text(self, tokens: Tensor) -> TextFeatures:
        """Embeds ``[K, D]``, states ``[K, L, W]`` and mask logits ``[K, D]`` (None without masks) of ``[K, L]`` ids."""
        ...

    def mask_logits(self, states: Tensor, keep: Tensor) -> Tensor | None:
        """``[K, D]`` mask logits, or None."""
        ...

    def provenance(self) -> dict[str, str]:
        """Identifies the rows of a bank made by this encoder; contains ``checkpoint_hash``."""
        ...

    def to(self, device: Any) -> Any:
        """Move to a device; returns itself, as :class:`torch.nn.Module` does."""
        ...

    def eval(self) -> Any:
        """Switch to inference; returns itself, as :class:`torch.nn.Module` does."""
        ...


#: Names of the protocol's attributes and methods.
MEMBERS = (*Encoder.__annotations__, *(name for name in vars(Encoder) if not name.startswith("_")))
SIZES = ("image_size", "patch_size", "embed_dim", "mask_pad")


def check_members(encoder: Any) -> None:
    """Check that an object has the members of :class:`Encoder`, without running it.

    Raises:
        UserError: with the names of the missing ones.
    """
    # The class first: a property such as the hash is not computed for this.
    missing = [m for m in MEMBERS if not hasattr(type(encoder), m) and not hasattr(encoder, m)]
    if "config" not in missing:
        missing += [f"config.{s}" for s in SIZES if not hasattr(encoder.config, s)]
    if missing:
        raise UserError(
            f"{type(encoder).__name__} is not an encoder: it lacks {', '.join(missing)}. Pass a name of weights, "
            "a file, or an object with the members of smartclip_det.models.towers.encoder.Encoder."
        )


@torch.no_grad()
def check_encoder(encoder: Any) -> None:
    """Run an encoder on two images and two texts, and check what it returns; for the tests of your own class.

    Raises:
        UserError: for missing members, and for results of another type or shape, with the method that returned them.
    """
    check_members(encoder)
    _check_images(encoder)
    _check_texts(encoder)
    stated = encoder.provenance().get("checkpoint_hash")
    if stated != encoder.checkpoint_hash:
        raise UserError(
            f"provenance()['checkpoint_hash'] is {stated!r}, but checkpoint_hash is {encoder.checkpoint_hash!r}."
        )


def _check_images(encoder: Any) -> None:
    config, device = encoder.config, encoder.logit_scale.device
    if "value" not in encoder.dense_modes:
        raise UserError(f"dense_modes must contain 'value', the default mode; given {tuple(encoder.dense_modes)}.")
    for fact in encoder.image_statistics():
        if len(fact) != 3:
            raise UserError(f"image_statistics() must return two triples, mean and deviation of RGB; given {fact!r}.")
    side, dim = config.image_size, config.embed_dim
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, side, side, generator=generator).to(device)
    vectors = encoder.encode_image(images)
    _expect("encode_image(images)", vectors, (2, dim))
    if torch.allclose(vectors.float().norm(dim=-1), torch.ones(2, device=device), atol=1e-3):
        raise UserError("encode_image returns vectors of length 1: it must not normalise them, as masks come first.")
    sides = [side] if getattr(config, "fixed_size", False) else [side, 2 * side]
    for mode in encoder.dense_modes:
        for given in sides:
            cells = given // config.patch_size
            pixels = torch.randn(2, 3, given, given, generator=generator).to(device)
            try:
                dense = encoder.encode_dense(pixels, mode)
            except Exception as error:
                if given == side:
                    raise
                raise UserError(
                    f"encode_dense fails at {given} x {given} pixels ({error}). Resize the position embeddings, or set "
                    "config.fixed_size=True."
                ) from error
            _expect(f"encode_dense(images, {mode!r}) at {given} x {given} pixels", dense, (2, dim, cells, cells))


def _check_texts(encoder: Any) -> None:
    dim = encoder.config.embed_dim
    tokens = encoder.tokenize(["a cup", "two dogs on a sofa"])
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or len(tokens) != 2 or tokens.is_floating_point():
        raise UserError(f"tokenize must return [K, L] integers; for two texts it returned {_described(tokens)}.")
    ids = tokens.to(encoder.logit_scale.device)
    features = encoder.forward_text(ids)
    missing = [m for m in ("embeds", "states", "mask_logits") if not hasattr(features, m)]
    if missing:
        raise UserError(
            f"forward_text must return smartclip_det.models.towers.smartclip.TextFeatures; its "
            f"{type(features).__name__} lacks {', '.join(missing)}."
        )
    _expect("forward_text(tokens).embeds", features.embeds, (2, dim))
    if features.mask_logits is None:
        return
    _expect("forward_text(tokens).mask_logits", features.mask_logits, (2, dim))
    again = encoder.mask_logits(features.states, token_keep(ids))
    _expect("mask_logits(states, keep)", again, (2, dim))
    if not torch.allclose(again.float(), features.mask_logits.float(), rtol=1e-3, atol=1e-3):
        raise UserError(
            "mask_logits(states, keep) differs from forward_text(tokens).mask_logits. Keep ends at the largest id of a "
            "row: is that the end token?"
        )


def _expect(call: str, given: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(given, Tensor) or tuple(given.shape) != shape:
        raise UserError(f"{call} must return a tensor {list(shape)}; it returned {_described(given)}.")


def _described(given: Any) -> str:
    return f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
