"""Webdataset shards read by place: plain tar files whose members are found once and then read in any order.

A stream would tie a run to the order on disk and to its workers; with an index of members the shards shuffle, resume
and repeat exactly like a folder of files.
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
        """Its content."""
        with self.shard.open("rb") as handle:
            handle.seek(self.offset)
            return handle.read(self.size)


def member_at(address: str) -> Member:
    """The member of an :attr:`Member.address`."""
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
    """Whether a path is a shard, a folder of shards or a pattern that finds some."""
    return bool(_shards(source))


def index_shards(source: Path, counts: CaptionCounts | None = None) -> Iterator[tuple[str, dict[str, Member]]]:
    """Samples of all shards in order: key, and members by lower-case ending.

    A name that comes again in a shard begins another sample of that key, kept and counted, where both are whole.
    The places of a shard's members are kept in ``SHARD.index.json`` where that can be written.

    Args:
        source: a shard, a folder of shards or a pattern.
        counts: of hidden members and repeated keys.

    Raises:
        UserError: no shards, a damaged one, or repeated names that cannot be told apart.
    """
    counts = CaptionCounts() if counts is None else counts
    found = _shards(source)
    if not found:
        raise UserError(f"No .tar shards at {source}: give a folder of them or a pattern such as shards/*.tar.")
    for shard in found:
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
                    f"{shard}: sample {key!r} has members of one name twice, and it cannot be told which belong "
                    f"together ({parts}). Write the shard anew with a name for each sample."
                )
            for again, sample in enumerate(of_key):
                if again:
                    counts.add("repeated_keys", f"{shard.name}: sample {key!r}")
                yield key, sample


def _members(shard: Path) -> list[tuple[str, int, int]]:
    """Name, offset and bytes of each file of a shard."""
    facts = shard.stat()
    state = {"bytes": facts.st_size, "modified": facts.st_mtime_ns}
    kept = shard.with_name(shard.name + ".index.json")
    if kept.is_file():
        try:
            content = json.loads(kept.read_text(encoding="utf-8"))
        except ValueError:
            content = {}
        if isinstance(content, dict) and content.get("state") == state:
            return [tuple(m) for m in content["members"]]
    try:
        with tarfile.open(shard, "r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    except tarfile.TarError as error:
        raise UserError(
            f"{shard} is no plain tar file, or cut short ({error}); compressed shards are not read."
        ) from error
    if any(offset + size > facts.st_size for _, offset, size in members):
        raise UserError(f"{shard} is cut short: its last member ends behind the file.")
    if os.access(shard.parent, os.W_OK):
        write_whole(kept, json.dumps({"state": state, "members": members}))
    return members
