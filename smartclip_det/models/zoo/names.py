"""The registry of named weights, and the names that need no entry in it: ``hf-hub:`` and ``open_clip:``.

No torch here: command-line parsers and lists read it in a blink.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, nearest

#: A repository of the Hugging Face hub, maybe at a revision, maybe one file of it.
HUB = re.compile(r"hf-hub:(?P<hub>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>.+))?")
#: A model of open_clip and one of its pretrained tags.
OPEN_CLIP = re.compile(r"open_clip:(?P<model>[^/]+)(/(?P<tag>.+))?")
_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".json")
_OTHER_WAYS = "hf-hub:OWNER/NAME takes any repository of the Hugging Face hub, open_clip:MODEL/TAG any of open_clip's."


@dataclass(frozen=True)
class Source:
    """Where a file of weights is.

    Attributes:
        hub: repository of the Hugging Face hub; empty where an address is given.
        file: the file of it; empty: found by the repository's list of files.
        beside: files of it that tell what the tensors do not.
        revision: commit, branch or tag; None for the main branch.
        address: of a single file elsewhere.
        sha256: as published; None where it was not seen.
        megabytes: size, in 10^6 bytes, as its page shows it; None where it was not seen.
    """

    hub: str = ""
    file: str = ""
    beside: tuple[str, ...] = ()
    revision: str | None = None
    address: str = ""
    sha256: str | None = None
    megabytes: float | None = None

    def __str__(self) -> str:
        if self.address:
            return self.address
        at = f"@{self.revision[:12]}" if self.revision else ""
        return f"hf-hub:{self.hub}{at}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class Weights:
    """What is known of one name.

    Attributes:
        name: as it is typed.
        kind: ``towers`` (read by this package) or ``open_clip`` (a timm family, built by open_clip).
        sources: tried in this order.
        licence: None where none is stated.
        image_size: input side in pixels; None for names without an entry.
        context_length: tokens.
        activation: of both towers; None where open_clip knows it.
        open_clip: ``MODEL/TAG`` of open_clip's table, or empty.
        published: percentages by set, see ``protocols.published``.
        published_source: who says so.
    """

    name: str
    kind: str
    sources: tuple[Source, ...]
    licence: str | None = None
    image_size: int | None = None
    context_length: int | None = None
    activation: str | None = None
    open_clip: str = ""
    published: Mapping[str, list[float]] = field(default_factory=dict)
    published_source: str = ""

    @property
    def open_clip_model(self) -> str:
        """The model's name in open_clip."""
        return self.open_clip.partition("/")[0]


@lru_cache(maxsize=1)
def registry() -> dict[str, Weights]:
    """Every entry of ``registry.json``, in its order."""
    told: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("registry.json").read_text(encoding="utf-8"))
    return {
        name: Weights(
            name,
            **{
                **entry,
                "sources": tuple(Source(**{**s, "beside": tuple(s.get("beside", ()))}) for s in entry["sources"]),
            },
        )
        for name, entry in told.items()
    }


def is_name(given: str) -> bool:
    """Whether something that was given for weights is meant as a name; its spelling may still be wrong."""
    return given in registry() or given.startswith(("hf-hub:", "open_clip:"))


def find(name: str) -> Weights:
    """What is known of a name.

    Raises:
        UserError: for a name that is not known, with the nearest ones.
    """
    if name in registry():
        return registry()[name]
    if name.startswith("hf-hub:"):
        found = HUB.fullmatch(name)
        if not found:
            raise UserError(
                f"{name!r} is no repository of the hub. The form is hf-hub:OWNER/NAME, hf-hub:OWNER/NAME"
                "@REVISION, and either with /FILE."
            )
        _check_repository(found["hub"])
        told: dict[str, Any] = {k: v for k, v in found.groupdict().items() if v}
        same = next((w for w in registry().values() if any(s.hub == told["hub"] for s in w.sources)), None)
        return Weights(
            name,
            same.kind if same else "towers",
            (Source(**told),),
            licence=same.licence if same else None,
            open_clip=same.open_clip if same else "",
        )
    if name.startswith("open_clip:"):
        return _of_open_clip(name)
    raise no_such_file(name)


def _check_repository(hub: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(hub)
    except HFValidationError as error:
        raise UserError(f"{hub!r} is no repository of the hub: {error}") from error


def no_such_file(given: str) -> UserError:
    """The error for something that is neither a file nor a name: which of both was meant shows in its spelling."""
    if not is_like_a_path(given):
        near = nearest(given, registry())
        hint = f" Nearest: {', '.join(near)}." if near else ""
        return UserError(
            f"{given!r} is no known name of weights and no file.{hint} smartclip-det models lists the "
            f"names; {_OTHER_WAYS}"
        )
    near = nearest(Path(given).stem, registry(), 1)
    hint = f" Or a name, which is downloaded: {near[0]}." if near else " smartclip-det models lists names."
    return UserError(f"No checkpoint at {given}. Check the path.{hint}")


def is_like_a_path(given: str) -> bool:
    """Whether its spelling is that of a file or folder rather than of a name."""
    return given.lower().endswith(_ENDINGS) or given.startswith((".", "~", "/")) or "/" in given or "\\" in given


def _of_open_clip(name: str) -> Weights:
    from smartclip_det.models.towers.tokenizer import open_clip_names, open_clip_pretrained

    found = OPEN_CLIP.fullmatch(name)
    model, tag = (found["model"], found["tag"]) if found else (name.partition(":")[2], None)
    if model not in open_clip_names():
        near = nearest(model, open_clip_names())
        raise UserError(f"open_clip has no model {model!r}. Nearest: {', '.join(near) or 'none'}.")
    table = open_clip_pretrained(model)
    if tag not in table:
        said = f"no weights {tag!r}" if tag else "several weights" if table else "no weights"
        raise UserError(
            f"open_clip has {said} of {model}. It has: {', '.join(table) or 'none'}. The form is open_clip:{model}/TAG."
        )
    told = table[tag]
    # The table spells owner/repository/, with a file behind it where it is not the usual one.
    owner, _, rest = str(told.get("hf_hub") or "").partition("/")
    repository, _, file = rest.partition("/")
    source = Source(hub=f"{owner}/{repository}", file=file) if repository else Source(address=str(told["url"]))
    kind = "open_clip" if told["timm"] else "towers"
    return Weights(name, kind, (source,), open_clip=f"{model}/{tag}")
