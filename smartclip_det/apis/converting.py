"""Conversion of tower checkpoints between layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers import SmartCLIP, read_checkpoint
from smartclip_det.models.towers.checkpoints import state_hash
from smartclip_det.models.towers.exports import FOLDERS, plain_towers

ENDINGS = (".safetensors", ".pt", ".pth")
LAYOUTS = ("openai", "native", *FOLDERS)


@dataclass(frozen=True)
class ConvertOptions:
    """Options of checkpoint conversion.

    Attributes:
        src: checkpoint file, or a Hugging Face or open_clip folder.
        dst: output file, or folder for the layouts ``huggingface`` and ``open_clip``.
        layout: output layout, one of ``LAYOUTS``.
        activation: activation function, if the source does not record it.
        reading: which weights to read if the source has several.
        stretch: stretch 77 text positions to 248 (Long-CLIP).
        drop_masks: drop the mask network if the output layout has no place for it.
    """

    src: Path
    dst: Path
    layout: str = "openai"
    activation: str | None = None
    reading: str | None = None
    stretch: bool = False
    drop_masks: bool = False


def convert(options: ConvertOptions) -> list[str]:
    """Convert a checkpoint and verify the output by reading it back.

    Returns:
        Report lines.

    Raises:
        UserError: for unreadable sources, layouts that cannot represent them, and outputs that do not read back.
    """
    folder = options.layout in FOLDERS
    if not folder and options.dst.suffix not in ENDINGS:
        raise UserError(f"{options.dst}: the suffix must be one of {', '.join(ENDINGS)}.")
    source = read_checkpoint(options.src, activation=options.activation, reading=options.reading)
    model = SmartCLIP.from_read(source, stretch=options.stretch)
    model.save(options.dst, layout=options.layout, drop_masks=options.drop_masks)
    state, config = model.openai_state(), model.config
    if folder:
        state, config = plain_towers(state, config)
    bare = options.dst.suffix != ".safetensors" and options.layout == "openai"
    again = read_checkpoint(options.dst, activation=config.activation if bare else None)
    if again.hash != state_hash(state) or again.config != config:
        raise UserError(f"{options.dst} does not read back to the same towers: {again.config}.")
    lines = [
        f"{options.src}: layout {source.layout}, weights {source.reading}, {len(source.state)} tensors, hash "
        f"{source.hash}",
        f"  {source.config}",
        f"  skipped keys: {', '.join(source.unmatched) or 'none'}",
        f"written: {options.dst}, {len(again.state)} tensors, hash {again.hash}",
    ]
    if folder:
        lines.append(f"load it with {FOLDERS[options.layout].format(path=options.dst)}")
    if bare:
        lines.append("note: plain .pt files cannot store activation, heads and mask_pad; .safetensors can.")
    return lines
