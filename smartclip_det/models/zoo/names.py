"""Registry of named weights, and names that need no entry: ``hf-hub:`` and ``open_clip:``.

Torch-free, so that command-line parsers and listings start quickly.
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

#: A Hugging Face hub repository, optionally with a revision and a file.
HUB = re.compile(r"hf-hub:(?P<hub>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>.+))?")
#: A model of open_clip, optionally with one of its pretrained tags.
OPEN_CLIP = re.compile(r"open_clip:(?P<model>[^/]+)(/(?P<tag>.+))?")
_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".json")
_OTHER_WAYS = "hf-hub:OWNER/NAME accepts any repository of the Hugging Face hub, open_clip:MODEL/TAG any of open_clip."


@dataclass(frozen=True)
class Source:
    """Location of a weights file.

    Attributes:
        hub: Hugging Face hub repository; empty if ``address`` is given.
        file: file in the repository; empty: chosen from the repository's file list.
        beside: config files in the repository.
        revision: commit, branch or tag; None for the main branch.
        address: URL of a single file elsewhere.
        sha256: published hash; None if unknown.
        megabytes: size in 10^6 bytes as stated on its page; None if unknown.
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
    """Registry entry of a name.

    Attributes:
        name: as typed.
        kind: ``towers`` (read by this package) or ``open_clip`` (a timm family, built by open_clip).
        sources: tried in order.
        licence: None if not stated.
        image_size: input side in pixels; None for names without an entry.
        context_length: number of tokens.
        activation: of both towers; None if open_clip knows it.
        open_clip: ``MODEL/TAG`` in open_clip's table, or empty.
        published: percentages by evaluation set, see ``protocols.published``.
        published_source: source of the published numbers.
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
        """Name of the model in open_clip."""
        return self.open_clip.partition("/")[0]


@lru_cache(maxsize=1)
def registry() -> dict[str, Weights]:
    """All entries of ``registry.json``, in order."""
    entries: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_name("registry.json").read_text(encoding="utf-8")
    )
    return {
        name: Weights(
            name,
            **{
                **entry,
                "sources": tuple(Source(**{**s, "beside": tuple(s.get("beside", ()))}) for s in entry["sources"]),
            },
        )
        for name, entry in entries.items()
    }


def is_name(given: str) -> bool:
    """Whether an argument for weights is meant as a name, even if it is misspelled."""
    return given in registry() or given.startswith(("hf-hub:", "open_clip:"))


def find(name: str) -> Weights:
    """Look up a name.

    Raises:
        UserError: for an unknown name, with the closest ones.
    """
    if name in registry():
        return registry()[name]
    if name.startswith("hf-hub:"):
        match = HUB.fullmatch(name)
        if not match:
            raise UserError(
                f"{name!r} is not a hub repository. Write hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION, optionally "
                "followed by /FILE."
            )
        _check_repository(match["hub"])
        fields: dict[str, Any] = {k: v for k, v in match.groupdict().items() if v}
        same = next((w for w in registry().values() if any(s.hub == fields["hub"] for s in w.sources)), None)
        return Weights(
            name,
            same.kind if same else "towers",
            (Source(**fields),),
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
        raise UserError(f"{hub!r} is not a hub repository: {error}") from error


def no_such_file(given: str) -> UserError:
    """Error for an argument that is neither a file nor a name; its spelling shows which was meant."""
    if not is_like_a_path(given):
        near = nearest(given, registry())
        hint = f" Nearest: {', '.join(near)}." if near else ""
        return UserError(
            f"{given!r} is neither a known name of weights nor a file.{hint} smartclip-det models lists the "
            f"names; {_OTHER_WAYS}"
        )
    near = nearest(Path(given).stem, registry(), 1)
    hint = f" Or did you mean the name {near[0]}?" if near else " smartclip-det models lists names."
    return UserError(f"No checkpoint at {given}. Check the path.{hint}")


def is_like_a_path(given: str) -> bool:
    """Whether it looks like a path rather than a name."""
    return given.lower().endswith(_ENDINGS) or given.startswith((".", "~", "/")) or "/" in given or "\\" in given


def _of_open_clip(name: str) -> Weights:
    from smartclip_det.models.towers.tokenizer import open_clip_names, open_clip_pretrained

    match = OPEN_CLIP.fullmatch(name)
    model, tag = (match["model"], match["tag"]) if match else (name.partition(":")[2], None)
    if model not in open_clip_names():
        near = nearest(model, open_clip_names())
        raise UserError(f"open_clip has no model {model!r}. Nearest: {', '.join(near) or 'none'}.")
    table = open_clip_pretrained(model)
    if tag not in table:
        problem = f"no weights {tag!r}" if tag else "several weights" if table else "no weights"
        raise UserError(
            f"open_clip has {problem} for {model}. It has: {', '.join(table) or 'none'}. Write open_clip:{model}/TAG."
        )
    entry = table[tag]
    # The table has OWNER/REPOSITORY/, followed by a file if it is not the default one.
    owner, _, rest = str(entry.get("hf_hub") or "").partition("/")
    repository, _, file = rest.partition("/")
    source = Source(hub=f"{owner}/{repository}", file=file) if repository else Source(address=str(entry["url"]))
    kind = "open_clip" if entry["timm"] else "towers"
    return Weights(name, kind, (source,), open_clip=f"{model}/{tag}")
