"""What the verbs share: options under one name, old spellings, errors with the nearest names. No torch here."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from smartclip_det.core.errors import UserError, nearest
from smartclip_det.core.words import BOX_SOURCES, PRESENCE_SOURCES
from smartclip_det.utils.cfg_options import parse_options


class Parser(argparse.ArgumentParser):
    """Raw help text, and errors that name what is near."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Exit code 2 and one line on stderr; options that are not known with those that are near."""
        if message.startswith("unrecognized arguments:"):
            known = [o for a in self._actions for o in a.option_strings if a.help != argparse.SUPPRESS]
            wrong = [w.partition("=")[0] for w in message.split()[2:] if w.startswith("--")]
            hints = [f"{w}: nearest {', '.join(nearest(w, known)) or 'none'}" for w in wrong]
            message += f" ({'; '.join(hints)})" if hints else ""
        self.exit(2, f"error: {self.prog}: {message}\n{self.prog} --help tells all options.\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = nearest(str(value), map(str, action.choices))
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise argparse.ArgumentError(
                action, f"{value!r} is not known. Allowed: {', '.join(map(str, action.choices))}{hint}"
            )


class CfgOptions(argparse.Action):
    """``KEY=VALUE ...`` as a dictionary; given twice, both count."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Parse."""
        try:
            setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **parse_options(values)})
        except UserError as error:
            raise argparse.ArgumentError(None, str(error)) from error


@dataclass(frozen=True)
class Old:
    """A spelling of before, which works for one more version.

    Attributes:
        old: the option as it was.
        new: as it is now.
        unless: options beside which the old word has its new meaning.
    """

    old: str
    new: str
    unless: tuple[str, ...] = ()


def renewed(argv: Sequence[str], spellings: Iterable[Old]) -> list[str]:
    """The arguments in today's spelling; each old one is told on stderr."""
    out = list(argv)
    for s in spellings:
        given = [a.partition("=")[0] for a in out]
        if s.old in given and not any(o in given for o in s.unless):
            out = [s.new + a[len(s.old) :] if a.partition("=")[0] == s.old else a for a in out]
            print(f"note: {s.old} is now {s.new}; the old spelling goes with the next version.", file=sys.stderr)
    return out


def a_device(text: str) -> str:
    """An argument type: the name of a device; whether it is there is told later, with torch."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not known. Allowed: auto, cpu, cuda, cuda:N, mps")
    return text


def add_presence(parser: argparse.ArgumentParser, when: str = "") -> None:
    """``--presence`` and what it takes; ``when`` says where it holds."""
    add = parser.add_argument
    add("--presence", type=float, default=0.0, help=f"{when}exponent of a text's presence in the picture; 0: none")
    add(
        "--presence-source",
        choices=PRESENCE_SOURCES,
        default=PRESENCE_SOURCES[0],
        help="pooled: of the picture's vector; cells: of the largest weighted cell",
    )
    add("--presence-scale", type=float, default=50.0, help="factor on its cosine (study presence finds it)")
    add("--presence-bias", type=float, default=0.0, help="added before the sigmoid (found likewise)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", type=a_device, default="auto", help="auto (default), cpu, cuda, cuda:N or mps")


def add_cfg_options(parser: argparse.ArgumentParser, what: str = "overrides of the config") -> None:
    """``--cfg-options``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
        metavar="KEY=VALUE",
        help=f"{what}: dots for nesting, [a,b] for lists; text as written, in quotes if it looks like a number",
    )


def add_predictor(parser: argparse.ArgumentParser) -> None:
    """What answers: a detector of a config, or towers and a source of boxes."""
    add = parser.add_argument
    add("--config", help="of an open-vocabulary detector: a file, or a known name; without, towers alone answer")
    add("--checkpoint", help="its weights")
    add("--encoder", help="towers: a name of public weights or a file; with --config its towers.checkpoint")
    add("--boxes", help=f"without --config, where boxes come from: {', '.join(BOX_SOURCES)}, or a file")
    add_device(parser)
    add_cfg_options(parser)


def predictor_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of :func:`add_predictor`."""
    return {k: getattr(args, k) for k in ("config", "checkpoint", "encoder", "boxes", "device", "cfg_options")}


def add_encoder(parser: argparse.ArgumentParser, *, open_clip: bool = False, what: str = "towers, any layout") -> None:
    """``--encoder`` or ``--arch``, and with ``open_clip`` any model of open_clip."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--encoder", help=f"{what}: a checkpoint file, or a name (smartclip-det models)")
    source.add_argument("--arch", help="a named architecture with random weights: a control")
    if open_clip:
        source.add_argument("--open-clip", help="a SigLIP, EVA02 or other timm model of open_clip, by its name")
        parser.add_argument("--weights", help="weights of --open-clip; without it they are random")
        parser.add_argument("--tokenizer", help="folder of the tokenizer of --open-clip, where it is not its own")
        parser.add_argument("--image-size", type=int, default=0, help="input side of --open-clip; 0: its own")


def encoder_source(args: argparse.Namespace) -> dict[str, Any]:
    """The encoder that :func:`add_encoder` was told, as a config of towers."""
    if getattr(args, "open_clip", None):
        return {
            "open_clip": args.open_clip,
            "checkpoint": args.weights,
            "tokenizer": args.tokenizer,
            "image_size": args.image_size,
        }
    return {"checkpoint": args.encoder} if args.encoder else {"arch": args.arch}


def add_out(parser: argparse.ArgumentParser, default: str | None, what: str, *, required: bool = False) -> None:
    """``--out``."""
    told = f"{what}; default {default}" if default else what
    parser.add_argument("--out", type=Path, default=default and Path(default), required=required, help=told)


def at_least(lowest: int, what: str = "") -> Any:
    """An argument type: a whole number that is not below ``lowest``."""

    def number(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"a whole number of at least {lowest} is needed{what}; given {text!r}")
        return int(text)

    return number


def sets_of(given: Sequence[str]) -> dict[str, Path]:
    """Folders by the name of their set, from ``SET=FOLDER`` words."""
    wrong = [g for g in given if "=" not in g]
    if wrong:
        raise UserError(f"Give SET=FOLDER; {wrong[0]!r} has no '='.")
    return {name: Path(folder) for name, _, folder in (g.partition("=") for g in given)}


def templates_of(given: Sequence[str]) -> str | list[str]:
    """The name of a template set, or own templates (which have braces)."""
    return given[0] if len(given) == 1 and "{" not in given[0] else list(given)


def add_run(parser: argparse.ArgumentParser) -> None:
    """What training and testing share."""
    parser.add_argument("config", help="config file, or the name of one of the package (ov_coco/NAME)")
    parser.add_argument("--work-dir", help="folder of logs and checkpoints; default work_dirs/CONFIG_NAME")
    add_cfg_options(parser)
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="what started the processes"
    )
    # Launchers spell it either way.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
