"""Files of named weights: downloaded by huggingface_hub and torch.hub into their own caches, and verified.

Resuming, proxies, mirrors (``HF_ENDPOINT``) and offline mode (``HF_HUB_OFFLINE``) are handled by these libraries. This
module adds a notice before a first download, a check of disk space and hash, and one-line errors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.json_files import read_json
from smartclip_det.models.zoo.download_errors import ROOM, UnreachableError, translate_errors
from smartclip_det.models.zoo.hashes import check_hash
from smartclip_det.models.zoo.names import Source, Weights, find
from smartclip_det.utils.disk import free_bytes, refuse_full_disk
from smartclip_det.utils.notes import note

#: Weight files by preference for repositories without a given file; open_clip's before timm's image-only weights.
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_BESIDE = ("open_clip_config.json", "config.json", "preprocessor_config.json")
_LOOSE = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Fetched:
    """Downloaded weights.

    Attributes:
        path: the file.
        weights: registry entry of the name.
        sha256: hash of the file.
    """

    path: Path
    weights: Weights
    sha256: str


def fetch(name: str) -> Fetched:
    """Path of named weights, from the cache or downloaded.

    Raises:
        UserError: for an unknown name, or a failed download: no network, a missing file, a gated repository, a full
            disk, a broken connection, or a hash that differs from the published one.
    """
    weights = find(name)
    for source in weights.sources:
        path = cached_path(source)
        if path is not None:
            return Fetched(path, weights, check_hash(path, source, fresh=False))
    reasons = []
    for source in weights.sources:
        try:
            path = _from_hub(weights, source) if source.hub else _from_address(weights, source)
        except UnreachableError as error:
            reasons.append(str(error))
            continue
        return Fetched(path, weights, check_hash(path, source, fresh=True))
    raise UserError(f"{name} is not cached and could not be downloaded. {' '.join(reasons)}")


def cached_path(source: Source) -> Path | None:
    """The cached file of a source if it and its config files are complete; never uses the network."""
    if source.address:
        path = _address_cache() / Path(source.address).name
        return path if path.is_file() else None
    if not source.file:
        # A repository may have changed: the hub client checks, and falls back to its cache when offline.
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = [try_to_load_from_cache(source.hub, f, revision=source.revision) for f in (*source.beside, source.file)]
    return Path(str(cached[-1])) if all(isinstance(f, str) for f in cached) else None


def _address_cache() -> Path:
    """Checkpoint folder of torch.hub, computed without importing torch."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def _from_hub(weights: Weights, source: Source) -> Path:
    from huggingface_hub import constants

    if not source.file:
        source = translate_errors(source, _file_of, source)
    for file in source.beside:
        translate_errors(replace(source, file=file), _hub_file, source, file)

    def announce(size: int | None) -> None:
        refuse_full_disk(size, Path(constants.HF_HUB_CACHE), source, ROOM)
        _announce(weights, source, size, Path(constants.HF_HUB_CACHE), str(constants.ENDPOINT))

    path = translate_errors(source, _hub_file, source, source.file, announce)
    if source.file.endswith(".index.json"):
        _shards(source, path)
    return path


def _shards(source: Source, index: Path) -> None:
    for name in sorted(set(read_json(index, "index of shards").get("weight_map", {}).values())):
        shard = replace(source, file=str(name), sha256=None)
        check_hash(translate_errors(shard, _hub_file, shard, shard.file), shard, fresh=True)


def _hub_file(source: Source, file: str, announce: Callable[[int | None], None] | None = None) -> Path:
    from huggingface_hub import constants, hf_hub_download

    where: dict[str, Any] = {"repo_id": source.hub, "filename": file, "revision": source.revision}
    if announce is not None and not constants.is_offline_mode():
        plan = hf_hub_download(**where, dry_run=True)
        if plan.will_download:
            announce(plan.file_size)
    return Path(hf_hub_download(**where))


def _file_of(source: Source) -> Source:
    """The source completed with its repository's weight file and config files."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    known = (*_WEIGHTS, *_BESIDE)
    try:
        files = [s.rfilename for s in HfApi().model_info(source.hub, revision=source.revision).siblings or ()]
    except Exception:
        # Offline: use what an earlier download left. If there is nothing, the first error is more informative.
        try:
            folder = Path(snapshot_download(source.hub, revision=source.revision, local_files_only=True))
        except LocalEntryNotFoundError:
            folder = None
        if folder is None:
            raise
        files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    file = next((f for f in known[: len(_WEIGHTS)] if f in files), None)
    if file is None:
        loose = sorted(f for f in files if f.endswith(_LOOSE))
        if len(loose) != 1:
            listed = ", ".join(loose[:8]) or "none"
            raise UserError(
                f"{source} has {len(loose)} weight files ({listed}). Choose one with hf-hub:{source.hub}/FILE."
            )
        file = loose[0]
    return replace(source, file=file, beside=tuple(f for f in _BESIDE if f in files))


def _from_address(weights: Weights, source: Source) -> Path:
    """Download with torch.hub, as torchvision does: to a temporary file that is verified and then moved."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise UnreachableError(f"{source} was skipped because HF_HUB_OFFLINE is set.")
    from torch import hub

    path = _address_cache() / Path(source.address).name
    size = round(source.megabytes * 1e6) if source.megabytes else None
    refuse_full_disk(size, path.parent, source, ROOM)
    _announce(weights, source, size, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    translate_errors(source, hub.download_url_to_file, source.address, str(path), source.sha256)
    return path


def _announce(weights: Weights, source: Source, size: int | None, folder: Path, endpoint: str = "") -> None:
    measured = f"{size / 1e6:,.1f} MB" if size else "unknown size"
    origin = f"{endpoint}/{source.hub}, file {source.file}" if source.hub else source.address
    note(
        f"{weights.name}: downloading {measured} from {origin}; licence {weights.licence or 'not stated'}; to "
        f"{folder} ({free_bytes(folder) / 1e9:.0f} GB free).",
        error=True,
    )
