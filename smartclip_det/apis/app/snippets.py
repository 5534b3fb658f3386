"""The command line and the Python code that reproduce an answer of the page."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from smartclip_det.apis.predictor_options import PredictorOptions

DETECT, GROUND, MASKS = "detect", "ground", "masks"


@dataclass(frozen=True)
class Query:
    """A query of the page.

    Attributes:
        kind: ``detect``, ``ground`` or ``masks``.
        picture: image path as shown in commands.
        phrases: one or more.
        threshold: minimum score; unused by ``masks``.
        top_k: boxes per expression; ``ground`` only.
    """

    kind: str
    picture: str
    phrases: tuple[str, ...]
    threshold: float = 0.0
    top_k: int = 1


def command_line(predictor: PredictorOptions, query: Query) -> str:
    """``smartclip-det demo ...``, quoted for a POSIX shell."""
    # argparse would take a leading dash for an option.
    picture = f"./{query.picture}" if query.picture.startswith("-") else query.picture
    words = ["smartclip-det", "demo", picture]
    if any(p.startswith("-") for p in query.phrases):
        words += [f"--texts={p}" for p in query.phrases]
    else:
        words += ["--texts", *query.phrases]
    for name in ("config", "checkpoint", "encoder", "boxes"):
        value = getattr(predictor, name)
        words += [f"--{name}", str(value)] if value else []
    if predictor.templates != "photo":
        words += ["--templates", *_listed(predictor.templates)]
    words += ["--device", predictor.device] if predictor.device != "auto" else []
    if query.kind == MASKS:
        return shlex.join([*words, "--heatmap"])
    if query.kind == GROUND:
        words += ["--ground", "--top-k", str(query.top_k)]
    return shlex.join([*words, "--threshold", str(float(query.threshold))])


def python_lines(predictor: PredictorOptions, query: Query) -> str:
    """A script that stores the answer in ``found`` and prints it."""
    phrases = list(query.phrases)
    if query.kind == DETECT:
        asked = [f"found = predictor.detect({phrases!r}).above({float(query.threshold)})", "print(found.to_json())"]
    elif query.kind == GROUND:
        asked = [
            f"answers = predictor.ground({phrases!r}, top_k={query.top_k})",
            f"found = [answer.above({float(query.threshold)}) for answer in answers]",
            "print(*(answer.to_json() for answer in found), sep='\\n')",
        ]
    else:
        asked = [
            f"found = [predictor.explain(phrase) for phrase in {phrases!r}]",
            "for explained in found:",
            "    print(explained.text, explained.mask.nonzero()[0].tolist())",
        ]
    opened = [
        "from smartclip_det import Predictor",
        "",
        f"predictor = {_opening(predictor)}",
        f"predictor.set_image({query.picture!r})",
    ]
    return "\n".join([*opened, *asked])


def _opening(predictor: PredictorOptions) -> str:
    given: dict[str, Any] = {}
    if predictor.config:
        start = f"Predictor.from_config({predictor.config!r}, {predictor.checkpoint!r}"
        if predictor.encoder:
            given["cfg_options"] = {"towers.checkpoint": predictor.encoder}
    else:
        start = f"Predictor.from_pretrained({predictor.encoder!r}"
        if predictor.boxes:
            given["boxes"] = predictor.boxes
    if predictor.templates != "photo":
        given["templates"] = predictor.templates if isinstance(predictor.templates, str) else list(predictor.templates)
    if predictor.device != "auto":
        given["device"] = predictor.device
    start, *more = [start, *(f"{k}={v!r}" for k, v in given.items())]
    name, _, first = start.partition("(")
    return "\n".join([f"{name}(", *(f"    {a}," for a in (first, *more)), ")"])


def _listed(templates: Any) -> list[str]:
    return [templates] if isinstance(templates, str) else list(templates)
