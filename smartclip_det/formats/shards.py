"""Random access to webdataset shards: plain tar files whose members are indexed once and then read in any order.

A stream would tie a run to the order on disk and to its workers; with an index, shards can be shuffled, resumed and
repeated exactly like a folder of files.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.formats.caption_counts import CaptionCounts
from smartclip_det.utils.files import is_debris, write_whole


@dataclass(frozen=True)
class Member:
    """A file inside a shard."""

    shard: Path
    offset: int
    size: int

    @property
    def address(self) -> str:
        """``SHARD#OFFSET+BYTES``."""
        return f"{self.shard}#{self.offset}+{self.size}"

    def read(self) -> bytes:
        """Read the content."""
        with self.shard.open("rb") as handle:
            handle.seek(self.offset)
            return handle.read(self.size)


def member_at(address: str) -> Member:
    """Parse an :attr:`Member.address`."""
    shard, _, place = address.rpartition("#")
    offset, _, size = place.partition("+")
    return Member(Path(shard), int(offset), int(size))


def _shards(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(source.glob("*.tar"))
    if source.is_file():
        return [source] if source.suffix == ".tar" else []
    return sorted(source.parent.glob(source.name)) if source.suffix == ".tar" else []


def is_shards(source: Path) -> bool:
    """Whether a path is a shard, a folder of shards or a pattern that matches some."""
    return bool(_shards(source))


def index_shards(source: Path, counts: CaptionCounts | None = None) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield the samples of all shards in order: key, and members by lower-case suffix.

    A repeated name in a shard starts another sample with that key, kept and counted, if both are complete. The index
    of a shard is cached in ``SHARD.index.json`` if that is writable.

    Args:
        source: a shard, a folder of shards or a pattern.
        counts: counters of hidden members and repeated keys.

    Raises:
        UserError: for no shards, a damaged shard, or ambiguous repeated names.
    """
    counts = CaptionCounts() if counts is None else counts
    shards = _shards(source)
    if not shards:
        raise UserError(f"No .tar shards at {source}. Give a folder of shards or a pattern such as shards/*.tar.")
    for shard in shards:
        samples: dict[str, list[dict[str, Member]]] = {}
        for name, offset, size in _members(shard):
            if is_debris(name):
                counts.add("hidden_files", f"{shard.name}: {name}")
                continue
            folder, _, base = name.rpartition("/")
            stem, dot, ending = base.partition(".")
            ending = (dot + ending).lower()
            of_key = samples.setdefault(f"{folder}/{stem}" if folder else stem, [{}])
            if ending in of_key[-1]:
                of_key.append({})
            of_key[-1][ending] = Member(shard, offset, size)
        for key, of_key in samples.items():
            if any(set(s) != set(of_key[0]) for s in of_key):
                parts = "; ".join(", ".join(s) for s in of_key)
                raise UserError(
                    f"{shard}: sample {key!r} has repeated member names, and it is ambiguous which belong together "
                    f"({parts}). Write the shard again with a unique name per sample."
                )
            for again, sample in enumerate(of_key):
                if again:
                    counts.add("repeated_keys", f"{shard.name}: sample {key!r}")
                yield key, sample


def _members(shard: Path) -> list[tuple[str, int, int]]:
    """Return (name, offset, size) of each file in a shard."""
    facts = shard.stat()
    state = {"bytes": facts.st_size, "modified": facts.st_mtime_ns}
    index = shard.with_name(shard.name + ".index.json")
    if index.is_file():
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
        except ValueError:
            content = {}
        if isinstance(content, dict) and content.get("state") == state:
            return [tuple(m) for m in content["members"]]
    try:
        with tarfile.open(shard, "r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    except tarfile.TarError as error:
        raise UserError(
            f"{shard} is not a plain tar file, or is truncated ({error}); compressed shards are not supported."
        ) from error
    if any(offset + size > facts.st_size for _, offset, size in members):
        raise UserError(f"{shard} is truncated: a member ends beyond the file.")
    if os.access(shard.parent, os.W_OK):
        write_whole(index, json.dumps({"state": state, "members": members}))
    return members
