"""Options shared by several verbs, deprecated spellings, and errors that suggest the nearest names.

Imports no torch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

from smartclip_det.core.errors import UserError, nearest
from smartclip_det.core.words import BOX_SOURCES, DENSE_MODES, FITS, PRESENCE_SOURCES, VIEWS
from smartclip_det.utils.cfg_options import parse_options

#: A parser, or one of its argument groups.
Group: TypeAlias = argparse._ActionsContainer
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """Argument parser with raw help text and errors that suggest the nearest names."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line on stderr; unknown options come with the nearest known ones."""
        if message.startswith("unrecognized arguments:"):
            known = [o for a in self._actions for o in a.option_strings if a.help != argparse.SUPPRESS]
            wrong = [w.partition("=")[0] for w in message.split()[2:] if w.startswith("--")]
            hints = [f"{w}: nearest {', '.join(nearest(w, known)) or 'none'}" for w in wrong]
            message += f" ({'; '.join(hints)})" if hints else ""
        self.exit(2, f"error: {self.prog}: {message}\n{self.prog} --help lists all options.\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = nearest(str(value), map(str, action.choices))
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise argparse.ArgumentError(
                action, f"{value!r} is unknown. Allowed: {', '.join(map(str, action.choices))}{hint}"
            )


class CfgOptions(argparse.Action):
    """``KEY=VALUE ...`` as a dictionary; repeated options are merged."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Parse and merge."""
        try:
            setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **parse_options(values)})
        except UserError as error:
            raise argparse.ArgumentError(None, str(error)) from error


@dataclass(frozen=True)
class Old:
    """A deprecated spelling of an option, accepted for one more version.

    Attributes:
        old: the deprecated spelling.
        new: the current spelling.
        unless: options in whose presence ``old`` is itself a current option and is not replaced.
    """

    old: str
    new: str
    unless: tuple[str, ...] = ()


def renewed(argv: Sequence[str], spellings: Iterable[Old]) -> list[str]:
    """Replace deprecated spellings in the arguments; each replacement is noted on stderr."""
    out = list(argv)
    for s in spellings:
        given = [a.partition("=")[0] for a in out]
        if s.old in given and not any(o in given for o in s.unless):
            out = [s.new + a[len(s.old) :] if a.partition("=")[0] == s.old else a for a in out]
            print(
                f"note: {s.old} is now {s.new}; the old spelling will be removed in the next version.", file=sys.stderr
            )
    return out


def a_device(text: str) -> str:
    """Argument type: a device name. Whether the device is available is checked later, with torch."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is unknown. Allowed: auto, cpu, cuda, cuda:N, mps")
    return text


def filled(cls: type[T], args: argparse.Namespace, **given: Any) -> T:
    """Build an options dataclass: ``given`` fields as they are, the others from the arguments of the same name."""
    names = [f.name for f in fields(cls) if f.name not in given and f.name in args]  # type: ignore[arg-type]
    return cls(**{n: getattr(args, n) for n in names}, **given)


def add_presence(group: Group, when: str = "") -> None:
    """Add ``--presence`` and its parameters; ``when`` prefixes the help with the condition under which they apply."""
    add = group.add_argument
    add("--presence", type=float, default=0.0, help=f"{when}exponent of a text's presence score in the image; 0: off")
    add(
        "--presence-source",
        choices=PRESENCE_SOURCES,
        default=PRESENCE_SOURCES[0],
        help="pooled: from the pooled image vector; cells: from the highest weighted cell",
    )
    add("--presence-scale", type=float, default=50.0, help="scale of its cosine (from study presence)")
    add("--presence-bias", type=float, default=0.0, help="bias before the sigmoid (from study presence)")


def presence_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the options that :func:`add_presence` adds, as fields of a scoring policy."""
    names = ("presence", "presence_source", "presence_scale", "presence_bias")
    return {n: getattr(args, n) for n in names}


def add_views(
    group: Group, *, default: Sequence[str] = ("dense",), choices: Sequence[str] = VIEWS, several: str = "averaged"
) -> None:
    """Add ``--views``; ``several`` says how more than one view is used."""
    group.add_argument(
        "--views",
        nargs="+",
        default=list(default),
        choices=choices,
        help=f"how region vectors are computed; several are {several}",
    )


def add_dense(group: Group) -> None:
    """Add ``--dense-mode`` and ``--dense-size``."""
    group.add_argument(
        "--dense-mode", default="value", choices=DENSE_MODES, help="mode of the last block for the dense map"
    )
    add_dense_size(group)


def add_dense_size(group: Group) -> None:
    """Add ``--dense-size``."""
    group.add_argument(
        "--dense-size", type=int, default=0, help="side of the dense input in pixels; 0: the tower's input size"
    )


def add_crop_context(group: Group) -> None:
    """Add ``--crop-context``."""
    group.add_argument("--crop-context", type=float, default=1.2, help="crop side relative to the longer box side")


def add_templates(group: Group) -> None:
    """Add ``--templates``, to be read by :func:`templates_of`."""
    group.add_argument("--templates", nargs="+", default=["photo"], help="a template set, or custom templates")


def add_device(group: Group) -> None:
    """Add ``--device``."""
    group.add_argument("--device", type=a_device, default="auto", help="auto (default), cpu, cuda, cuda:N or mps")


def add_cfg_options(group: Group, what: str = "overrides of the config") -> None:
    """Add ``--cfg-options``."""
    group.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
        metavar="KEY=VALUE",
        help=f"{what}: dots for nesting, [a,b] for lists; quote strings that look like numbers",
    )


def add_predictor(group: Group, *, what: str = "an open-vocabulary detector", cfg_options: bool = True) -> None:
    """Add the options that select the predictor: the config of ``what``, or towers and a box source.

    They have the names of the fields of ``PredictorOptions``.
    """
    add = group.add_argument
    add("--config", help=f"config of {what}: a file or a packaged name; default: towers alone")
    add("--checkpoint", help="weights of --config; without it, heads are random")
    add("--encoder", help="towers: a file or a name of public weights; overrides towers.checkpoint of --config")
    add("--boxes", help=f"box source without --config: {', '.join(BOX_SOURCES)}, or a file")
    add_device(group)
    if cfg_options:
        add_cfg_options(group)


def add_vocabulary(group: Group, default: str = "", *, required: bool = False) -> None:
    """Add ``--vocabulary``; ``default`` names the classes used without it."""
    text = "class names: a known vocabulary (coco_80, ...), .txt (one per line) or .json list"
    group.add_argument("--vocabulary", required=required, help=f"{text}; default: {default}" if default else text)


def add_names(group: Group, what: str) -> None:
    """Add ``--texts`` and ``--vocabulary``, to be read by :func:`names_of`; ``what`` is the plural of a text."""
    group.add_argument("--texts", nargs="+", action="extend", default=[], help=f"{what}, one per argument")
    add_vocabulary(group)


def check_names(args: argparse.Namespace, what: str) -> None:
    """Raise :class:`UserError` if neither ``--texts`` nor ``--vocabulary`` is given; imports nothing heavy."""
    if not args.texts and not args.vocabulary:
        raise UserError(f"No {what} given: use --texts NAME... or --vocabulary NAMES.")


def names_of(args: argparse.Namespace) -> list[str]:
    """Return the texts, followed by the names of the vocabulary."""
    from smartclip_det.models.vocabulary import resolve_names

    return [*args.texts, *(resolve_names(args.vocabulary) if args.vocabulary else [])]


def add_detection(group: Group) -> None:
    """Add the options of batched detection, among them ``--tile``, to be read by :func:`tile_of`."""
    add = group.add_argument
    add("--batch-size", type=at_least(1), default=8, help="images (or tiles) per batch")
    add("--tile", nargs=2, type=int, metavar=("SIDE", "OVERLAP"), help="split large images into tiles of SIDE pixels")
    add("--max-detections", type=at_least(1), default=100, help="maximum detections per image or tile")


def tile_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """Return the side and overlap of tiles; None for whole images."""
    return args.tile and tuple(args.tile)


def add_workers(group: Group) -> None:
    """Add ``--workers``."""
    group.add_argument("--workers", type=int, default=4, help="data loader workers")


def add_square_images(group: Group, batch: str = "images") -> None:
    """Add the options of encoding whole square images; ``batch`` is what ``--batch-size`` counts."""
    group.add_argument("--fit", choices=FITS, default="crop", help="how images are made square")
    group.add_argument("--batch-size", type=int, default=64, help=f"{batch} per batch")
    add_workers(group)
    add_device(group)


def add_published_sets(group: Group) -> None:
    """Add the options of measuring published numbers."""
    group.add_argument(
        "--partial", action="store_true", help="accept incomplete sets: a smoke test, not a verification"
    )
    group.add_argument("--names", help="imagenet: class names of the folders, see smartclip-det classify")
    add_workers(group)
    add_device(group)


def add_encoder(group: Group, *, open_clip: bool = False, what: str = "towers, any layout") -> None:
    """Add ``--encoder`` and ``--arch``, and with ``open_clip`` the options for any model of open_clip."""
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--encoder", help=f"{what}: a checkpoint file, or a name (smartclip-det models)")
    source.add_argument("--arch", help="architecture name, for random weights (a control)")
    if open_clip:
        source.add_argument("--open-clip", help="name of an open_clip model (SigLIP, EVA02 or another timm model)")
        group.add_argument("--weights", help="weights of --open-clip; random if not given")
        group.add_argument("--tokenizer", help="tokenizer folder for --open-clip; default: the model's own")
        group.add_argument("--image-size", type=int, default=0, help="input side of --open-clip; 0: the model's own")


def encoder_source(args: argparse.Namespace) -> dict[str, Any]:
    """Return the encoder selected by the options of :func:`add_encoder`, as a tower config."""
    if getattr(args, "open_clip", None):
        return {
            "open_clip": args.open_clip,
            "checkpoint": args.weights,
            "tokenizer": args.tokenizer,
            "image_size": args.image_size,
        }
    return {"checkpoint": args.encoder} if args.encoder else {"arch": args.arch}


def add_out(group: Group, default: str | None, what: str, *, required: bool = False) -> None:
    """Add ``--out``."""
    text = f"{what}; default {default}" if default else what
    group.add_argument("--out", type=Path, default=default and Path(default), required=required, help=text)


def at_least(lowest: int, what: str = "") -> Any:
    """Argument type: an integer of at least ``lowest``."""

    def number(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {lowest}{what}, got {text!r}")
        return int(text)

    return number


def sets_of(given: Sequence[str]) -> dict[str, Path]:
    """Parse ``SET=FOLDER`` arguments into a dictionary."""
    wrong = [g for g in given if "=" not in g]
    if wrong:
        raise UserError(f"Expected SET=FOLDER; {wrong[0]!r} has no '='.")
    return {name: Path(folder) for name, _, folder in (g.partition("=") for g in given)}


def templates_of(given: Sequence[str]) -> str | list[str]:
    """Return the name of a template set, or the list of custom templates (which contain braces)."""
    return given[0] if len(given) == 1 and "{" not in given[0] else list(given)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options shared by training and testing."""
    parser.add_argument("config", help="config file, or the name of a packaged config (ov_coco/NAME)")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints; default work_dirs/CONFIG_NAME")
    add_cfg_options(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    # torch launchers pass either spelling.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
