"""Map command-line words to verbs.

A verb's module has ``add_options(parser)``, ``run(args)`` and optionally ``OLD`` spellings.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from smartclip_det.cli.options import Parser, renewed
from smartclip_det.core.errors import UserError, nearest
from smartclip_det.utils.cli import run_tool

#: Verb -> (module below ``smartclip_det.cli``, one-line help).
VERBS: dict[str, tuple[str, str]] = {
    "toy": ("toy", "run the full pipeline on generated scenes, in minutes"),
    "train": ("train", "train a model from a config"),
    "test": ("test", "test a checkpoint with a config; write predictions and metrics"),
    "evaluate": ("evaluate", "score saved predictions, or compare two files"),
    "demo": ("demo", "detect phrases in images; writes images and JSON"),
    "app": ("app", "try a predictor on a page in the browser"),
    "label": ("label", "label a folder of images; writes a data set and a review page"),
    "calibrate": ("calibrate", "choose per-class thresholds from a few labelled images"),
    "ground": ("ground", "zero-shot grounding of referring expressions"),
    "rescore": ("rescore", "classify boxes from any detector, without training"),
    "retrieve": ("retrieve", "image-text retrieval with a named protocol"),
    "classify": ("classify", "zero-shot image classification"),
    "probe": ("probe", "classify ground-truth boxes with the towers alone"),
    "fine-tune": ("fine_tune", "fine-tune a detector on your own boxes, with a report"),
    "encode-texts": ("encode_texts", "encode a vocabulary into a text bank"),
    "models": ("models", "list, inspect and verify public weights"),
    "export": ("export", "export towers or a detector to ONNX, checked against PyTorch"),
    "convert": ("convert", "convert tower checkpoints between layouts"),
    "print-config": ("print_config", "print a config after inheritance and overrides"),
    "check config": ("check_config", "build a config and report unknown keys"),
    "check checkpoint": ("check_checkpoint", "check a checkpoint against its published numbers"),
    "check gpu": ("check_gpu", "check parity, mixed precision and memory on this GPU"),
    "data get": ("data.get", "download benchmarks by name from their official hosts"),
    "data make-toy": ("data.make_toy", "generate the toy world"),
    "data to-coco": ("data.to_coco", "convert YOLO or VOC labels to COCO json"),
    "data split-ov-coco": ("data.split_ov_coco", "make the OV-COCO files from the official ones"),
    "data split-ov-lvis": ("data.split_ov_lvis", "make the OV-LVIS files from the official ones"),
    "data convert-grounding": ("data.convert_grounding", "convert referring expressions between layouts"),
    "data check-leakage": ("data.check_leakage", "find benchmark images in a training set"),
    "data cache-images": ("data.cache_images", "cache preprocessed images of an alignment config"),
    "env": ("env", "print versions, device and an operator check, for bug reports"),
    "bench": ("bench", "benchmark speed and memory against peers"),
    "study grid": ("study.grid", "grid of variants and seeds on the toy world"),
    "study identifiability": ("study.identifiability", "do masks recover concepts? known latents"),
    "study objective": ("study.objective", "do masks help with the loss alone? no pixels, about a minute per run"),
    "study masks": ("study.masks", "analyse a checkpoint's masks; writes an HTML page"),
    "study vocabulary": ("study.vocabulary", "evaluate saved detections with small vocabularies"),
    "study presence": ("study.presence", "does presence scoring help? absent names and no-target sentences"),
    "study predictor": ("study.predictor", "measure the options of the training-free predictor, one at a time"),
    "study multi-dataset": ("study.multi_dataset", "test one detector on many data sets (ODinW)"),
    "study calibrate": ("study.calibrate", "choose the score threshold of grounding on training sentences"),
    "study grounding-pictures": ("study.grounding_pictures", "draw a sheet of grounding predictions"),
    "study toy-report": ("study.toy_report", "write the report and summary of a finished toy run"),
}
#: Old verb -> current verb.
RENAMED = {
    "retrieval": "retrieve",
    "fine_tune": "fine-tune",
    "region-probe": "probe",
    "benchmark": "bench",
    "study folders": "study multi-dataset",
}
HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``smartclip-det``; exit code 0 on success, 2 for bad input."""
    given = list(sys.argv[1:] if argv is None else argv)
    run_tool(lambda: _start(given))


def run_verb(verb: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run one verb; used by ``tools/*.py``."""
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
    """Split the arguments into a verb and the rest; the verb is empty if the help of a group is requested.

    Raises:
        UserError: for an unknown verb, with the nearest ones.
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
            f"{first!r} is not a verb of smartclip-det. Nearest: {', '.join(near) or 'none'}. "
            "smartclip-det --help lists all verbs."
        )
    if len(given) == 1 or given[1] in HELP:
        return "", []
    if given[1] not in inner:
        near = nearest(given[1], inner)
        raise UserError(
            f"{given[1]!r} is not a verb of {first}. Allowed: {', '.join(inner)}."
            + (f" Nearest: {near[0]}." if near else "")
        )
    return f"{first} {given[1]}", list(given[2:])


def module_of(verb: str) -> ModuleType:
    """Import and return the module of a verb."""
    return importlib.import_module(f"smartclip_det.cli.{VERBS[verb][0]}")


def parser_of(verb: str) -> Parser:
    """Build the parser of a verb; its description is the docstring of the verb's module."""
    module = module_of(verb)
    parser = Parser(prog=f"smartclip-det {verb}", description=module.__doc__)
    module.add_options(parser)
    return parser


def overview(group: str = "") -> str:
    """Format a list of all verbs, or of those in a group, one per line."""
    shown = {v: s for v, (_, s) in VERBS.items() if not group or v.startswith(f"{group} ")}
    width = max(map(len, shown))
    lines = [f"  {v:{width}s}  {s}" for v, s in shown.items()]
    usage = f"usage: smartclip-det {group + ' ' if group else ''}VERB ..."
    return "\n".join([usage, "", *lines, "", "smartclip-det VERB --help shows options and examples."])
