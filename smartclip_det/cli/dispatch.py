"""From words to verbs. A verb's module has ``add_options(parser)``, ``run(args)``, maybe ``OLD`` spellings."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from smartclip_det.cli.options import Parser, renewed
from smartclip_det.core.errors import UserError, nearest
from smartclip_det.utils.cli import run_tool

#: Words, their module below ``smartclip_det.cli``, and what they do.
VERBS: dict[str, tuple[str, str]] = {
    "toy": ("toy", "the whole story on drawn scenes, in minutes"),
    "train": ("train", "train by a config"),
    "test": ("test", "test a checkpoint by a config, write predictions and metrics"),
    "evaluate": ("evaluate", "score saved predictions, or compare two"),
    "demo": ("demo", "find phrases in photographs: pictures and JSON"),
    "label": ("label", "a folder of photographs to a data set, and a page to look it over"),
    "calibrate": ("calibrate", "thresholds by class from a few labelled pictures"),
    "ground": ("ground", "zero-shot grounding of a file of expressions"),
    "rescore": ("rescore", "classify boxes of any origin, without training"),
    "retrieve": ("retrieve", "image-text retrieval by a named protocol"),
    "classify": ("classify", "zero-shot classification of folders of images"),
    "probe": ("probe", "ground-truth boxes classified by towers alone"),
    "fine-tune": ("fine_tune", "a detector on your own boxes, with a report"),
    "encode-texts": ("encode_texts", "a vocabulary as a text bank"),
    "models": ("models", "weights by name: what there is, what is here, does it check out?"),
    "convert": ("convert", "tower checkpoints between layouts"),
    "print-config": ("print_config", "a config after inheritance and overrides"),
    "check config": ("check_config", "does a config build, and who takes its keys?"),
    "check checkpoint": ("check_checkpoint", "does a checkpoint give its published numbers here?"),
    "check gpu": ("check_gpu", "parity, mixed precision and memory on this GPU"),
    "data get": ("data.get", "benchmarks by name, from their owners' addresses"),
    "data make-toy": ("data.make_toy", "draw the toy world"),
    "data to-coco": ("data.to_coco", "YOLO or VOC labels as COCO json"),
    "data split-ov-coco": ("data.split_ov_coco", "the OV-COCO files from the official ones"),
    "data split-ov-lvis": ("data.split_ov_lvis", "the OV-LVIS files from the official ones"),
    "data convert-grounding": ("data.convert_grounding", "expressions from any layout to any other"),
    "data check-leakage": ("data.check_leakage", "training images that a benchmark holds"),
    "data cache-images": ("data.cache_images", "prepared images of an alignment config, in one file"),
    "bench": ("bench", "time and memory beside peers"),
    "study grid": ("study.grid", "variants by seeds on the toy world"),
    "study identifiability": ("study.identifiability", "do masks find concepts? known latents"),
    "study objective": ("study.objective", "do masks pay by the loss alone? no pixels, a minute a run"),
    "study masks": ("study.masks", "what a checkpoint's masks do: a page with pictures"),
    "study vocabulary": ("study.vocabulary", "saved detections under small vocabularies"),
    "study presence": ("study.presence", "does presence pay? absent names, and none in grounding"),
    "study multi-dataset": ("study.multi_dataset", "one detector on many data sets (ODinW)"),
    "study calibrate": ("study.calibrate", "the score threshold of grounding, on training sentences"),
    "study grounding-pictures": ("study.grounding_pictures", "a sheet of grounding answers"),
    "study toy-report": ("study.toy_report", "report and summary of a finished toy run"),
}
#: Words of before.
RENAMED = {
    "retrieval": "retrieve",
    "fine_tune": "fine-tune",
    "region-probe": "probe",
    "benchmark": "bench",
    "study folders": "study multi-dataset",
}
HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """``smartclip-det``: exit code 0 when all is done, 2 for bad input."""
    given = list(sys.argv[1:] if argv is None else argv)
    run_tool(lambda: _start(given))


def run_verb(verb: str, argv: Sequence[str] | None = None) -> NoReturn:
    """One verb, as ``tools/*.py`` start it."""
    main([*verb.split(), *(sys.argv[1:] if argv is None else argv)])


def _start(given: list[str]) -> int | None:
    if given[:1] == ["--version"]:
        from smartclip_det.version import __version__

        print(f"smartclip_det {__version__}")
        return 0
    if not given or given[0] in HELP:
        print(overview())
        return 0 if given else 2
    verb, rest = find_verb(given)
    if not verb:
        print(overview(given[0]))
        return 0
    module = module_of(verb)
    args = parser_of(verb).parse_args(renewed(rest, getattr(module, "OLD", ())))
    code: int | None = module.run(args)
    return code


def find_verb(given: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that arguments start with, and what follows it; an empty verb where a group's help is asked for.

    Raises:
        UserError: for a word that is no verb, with the nearest ones.
    """
    for count in (1, 2):
        old = " ".join(given[:count])
        if old in RENAMED:
            print(f"note: {old} is now {RENAMED[old]}.", file=sys.stderr)
            given = [*RENAMED[old].split(), *given[count:]]
    first = given[0]
    if first in VERBS:
        return first, list(given[1:])
    inner = [v.split()[1] for v in VERBS if v.startswith(f"{first} ")]
    if not inner:
        words = list(dict.fromkeys([*(v.split()[0] for v in VERBS), *(v.split()[-1] for v in VERBS)]))
        full = {v.split()[-1]: v for v in VERBS}
        near = [full.get(n, n) for n in nearest(first, words)]
        raise UserError(
            f"{first!r} is no verb of smartclip-det. Nearest: {', '.join(near) or 'none'}. "
            "smartclip-det --help lists all."
        )
    if len(given) == 1 or given[1] in HELP:
        return "", []
    if given[1] not in inner:
        near = nearest(given[1], inner)
        raise UserError(
            f"{given[1]!r} is nothing that {first} does. It does: {', '.join(inner)}."
            + (f" Nearest: {near[0]}." if near else "")
        )
    return f"{first} {given[1]}", list(given[2:])


def module_of(verb: str) -> ModuleType:
    """The module of a verb."""
    return importlib.import_module(f"smartclip_det.cli.{VERBS[verb][0]}")


def parser_of(verb: str) -> Parser:
    """The parser of a verb; its help is the head of the verb's module."""
    module = module_of(verb)
    parser = Parser(prog=f"smartclip-det {verb}", description=module.__doc__)
    module.add_options(parser)
    return parser


def overview(group: str = "") -> str:
    """All verbs, or those of a group, one a line."""
    shown = {v: s for v, (_, s) in VERBS.items() if not group or v.startswith(f"{group} ")}
    width = max(map(len, shown))
    lines = [f"  {v:{width}s}  {s}" for v, s in shown.items()]
    usage = f"usage: smartclip-det {group + ' ' if group else ''}VERB ..."
    return "\n".join([usage, "", *lines, "", "smartclip-det VERB --help tells options and examples."])
