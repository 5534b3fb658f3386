"""Tower sizes and named architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from smartclip_det.core.errors import UserError, check_choice, nearest

_KINDS = {int: "a whole number of at least 0", str: "a string", bool: "true or false"}


@dataclass(frozen=True)
class TowerConfig:
    """Everything needed to build a :class:`SmartCLIP`, except its weights.

    Attributes:
        embed_dim: joint dimension D.
        image_size: native image side in pixels.
        patch_size: patch side in pixels.
        vision_width: image tower width.
        vision_layers: image tower blocks.
        vision_heads: image tower heads.
        context_length: token positions (77 or 248).
        vocab_size: token ids.
        text_width: text tower width W.
        text_layers: text tower blocks.
        text_heads: text tower heads.
        activation: ``quick_gelu`` (OpenAI weights) or ``gelu``; stored here because tensors do not show it.
        stretched: whether Long-CLIP's second position table exists.
        mask_layers: blocks of the mask network; 0: no mask network, masks are ones.
        mask_pad: whether the mask network attends to padding, ``include`` (released) or ``ignore``.
        mask_top_k: fixed number of dimensions per mask; 0: any number.
        text_activation: activation of the text tower if it differs; otherwise empty.
        vision: type of the image tower: ``vit``, or ``local`` (convolutions, for small images).
        saliency: whether the cells of a ViT's dense map have learned weights, which start equal (the local tower
            always has them).
    """

    embed_dim: int = 512
    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    context_length: int = 77
    vocab_size: int = 49408
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    activation: str = "quick_gelu"
    stretched: bool = False
    mask_layers: int = 0
    mask_pad: str = "ignore"
    mask_top_k: int = 0
    text_activation: str = ""
    vision: str = "vit"
    saliency: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        check_choice("activation", self.activation, ("quick_gelu", "gelu"))
        check_choice("text_activation", self.text_activation, ("", "quick_gelu", "gelu"))
        if self.text_activation == self.activation:
            object.__setattr__(self, "text_activation", "")
        check_choice("mask_pad", self.mask_pad, ("include", "ignore"))
        check_choice("vision", self.vision, ("vit", "local"))
        if self.saliency and self.vision != "vit":
            raise UserError(f"saliency needs vision='vit'; a {self.vision!r} tower always has weights of cells.")
        if not 0 <= self.mask_top_k < self.embed_dim:
            raise UserError(f"mask_top_k must be in [0, {self.embed_dim}); given {self.mask_top_k}.")
        for side, width, heads in (
            ("vision", self.vision_width, self.vision_heads),
            ("text", self.text_width, self.text_heads),
        ):
            if heads < 1 or width % heads:
                raise UserError(f"{side}_width {width} cannot be divided into {heads} heads.")

    def _check_types(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            kind: type = type(f.default)
            if type(value) is not kind or (isinstance(value, int) and value < 0):
                raise UserError(f"Tower key {f.name} must be {_KINDS[kind]}; given {value!r}.")

    def with_(self, **changes: Any) -> TowerConfig:
        """A validated copy; unknown keys raise, with the closest ones."""
        return TowerConfig.from_dict({**asdict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any] | TowerConfig) -> TowerConfig:
        """Build from plain values; unknown keys raise, with the closest ones."""
        if isinstance(values, TowerConfig):
            return replace(values)
        known = [f.name for f in fields(TowerConfig)]
        for key in values:
            if key not in known:
                raise UserError(f"Unknown tower key {key!r}. Nearest: {', '.join(nearest(key, known)) or 'none'}.")
        return TowerConfig(**dict(values))


_B16 = TowerConfig()
_L14 = TowerConfig(
    embed_dim=768, patch_size=14, vision_width=1024, vision_layers=24, vision_heads=16, text_width=768, text_heads=12
)
_LONG = {"context_length": 248, "stretched": True}
_TOY_VIT = TowerConfig(
    embed_dim=64,
    image_size=64,
    patch_size=8,
    vision_width=128,
    vision_layers=4,
    vision_heads=4,
    context_length=128,
    text_width=64,
    text_layers=2,
    text_heads=2,
    activation="gelu",
)
_TOY = _TOY_VIT.with_(embed_dim=256, vision="local", vision_width=80, vision_layers=1, vision_heads=1)
_SMART = {**_LONG, "mask_layers": 1, "mask_pad": "include"}

ARCHITECTURES: dict[str, TowerConfig] = {
    "ViT-B-32": _B16.with_(patch_size=32),
    "ViT-B-16": _B16,
    "ViT-L-14": _L14,
    "ViT-L-14-336": _L14.with_(image_size=336),
    "LongCLIP-B-16": _B16.with_(**_LONG),
    "LongCLIP-L-14": _L14.with_(**_LONG),
    "SmartCLIP-B-16": _B16.with_(**_SMART),
    "SmartCLIP-L-14": _L14.with_(**_SMART),
    "CLIP-toy": _TOY,
    "SmartCLIP-toy": _TOY.with_(mask_layers=1),
    "CLIP-toy-ViT": _TOY_VIT,
    "SmartCLIP-toy-ViT": _TOY_VIT.with_(mask_layers=1),
    "SmartCLIP-tiny": TowerConfig(
        embed_dim=64,
        image_size=64,
        patch_size=8,
        vision_width=64,
        vision_layers=4,
        vision_heads=2,
        text_width=64,
        text_layers=2,
        text_heads=2,
        mask_layers=1,
    ),
}


def architecture(name: str) -> TowerConfig:
    """Config of a named architecture; unknown names raise, with the closest ones."""
    return ARCHITECTURES[check_choice("arch", name, ARCHITECTURES)]
