"""Tower checkpoints from one layout to another."""

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
    """What to convert.

    Attributes:
        src: checkpoint file, or a folder of Hugging Face or open_clip.
        dst: file to write, or the folder for the layouts ``huggingface`` and ``open_clip``.
        layout: one of ``LAYOUTS``.
        activation: where the source does not carry it.
        reading: which weights of a source that holds several.
        stretch: stretch 77 text positions to 248 (Long-CLIP).
        drop_masks: leave the mask network out, where the layout has no place for one.
    """

    src: Path
    dst: Path
    layout: str = "openai"
    activation: str | None = None
    reading: str | None = None
    stretch: bool = False
    drop_masks: bool = False


def convert(options: ConvertOptions) -> list[str]:
    """Write, and read back what was written.

    Returns:
        Lines that tell what was read and written.

    Raises:
        UserError: for sources that cannot be read, layouts that cannot carry them, and files that do not read back.
    """
    folder = options.layout in FOLDERS
    if not folder and options.dst.suffix not in ENDINGS:
        raise UserError(f"{options.dst}: the ending must be {', '.join(ENDINGS)}.")
    found = read_checkpoint(options.src, activation=options.activation, reading=options.reading)
    model = SmartCLIP.from_read(found, stretch=options.stretch)
    model.save(options.dst, layout=options.layout, drop_masks=options.drop_masks)
    state, config = model.openai_state(), model.config
    if folder:
        state, config = plain_towers(state, config)
    bare = options.dst.suffix != ".safetensors" and options.layout == "openai"
    again = read_checkpoint(options.dst, activation=config.activation if bare else None)
    if again.hash != state_hash(state) or again.config != config:
        raise UserError(f"{options.dst} does not read back to the same towers: {again.config}.")
    lines = [
        f"{options.src}: layout {found.layout}, weights {found.reading}, {len(found.state)} tensors, hash {found.hash}",
        f"  {found.config}",
        f"  left out: {', '.join(found.unmatched) or 'nothing'}",
        f"written: {options.dst}, {len(again.state)} tensors, hash {again.hash}",
    ]
    if folder:
        lines.append(f"read it by {FOLDERS[options.layout].format(path=options.dst)}")
    if bare:
        lines.append(
            "note: bare .pt files have no place for activation, heads and mask_pad; .safetensors carries them."
        )
    return lines
