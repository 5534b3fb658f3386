"""What a checkpoint file or folder holds: state dicts by name, and the facts that are written beside the tensors."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers import peer_configs
from smartclip_det.models.zoo.names import is_name, no_such_file
from smartclip_det.utils.safe_load import is_torchscript, safe_safetensors_load, safe_torch_load
from smartclip_det.utils.torchscript import activation_of, read_torchscript

logger = logging.getLogger(__name__)
FORMAT = "smartclip_det.towers/1"
_TOWERS = {"activation": r"visual\b", "text_activation": r"(transformer|text)\b"}
#: Names of weights in folders of Hugging Face and open_clip, the first that is there is read.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_DEPTH = 3


@dataclass
class Container:
    """A file or folder, opened.

    Attributes:
        states: tensors by the name of the mapping that holds them; ``""`` where the file is one state dict.
        facts: keys of ``TowerConfig`` that it tells.
        layout: the container's own name, where it has one.
        own: whether the facts are our own header, in which every key must be known.
        notes: what it holds that cannot be read, told when something is missed.
    """

    states: dict[str, dict[str, Tensor]]
    facts: dict[str, Any] = field(default_factory=dict)
    layout: str = ""
    own: bool = False
    notes: str = ""


def open_container(path: Path) -> Container:
    """Open a file or folder, with the configs beside it.

    Raises:
        UserError: missing, broken or foreign files, pickled objects.
    """
    if path.name.endswith(".index.json"):
        return _open_folder(path.parent)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        if is_name(str(path)):
            raise UserError(
                f"No checkpoint at {path}, which is a name: SmartCLIP.from_pretrained or --encoder fetches its weights."
            )
        raise no_such_file(str(path))
    return _with_configs(_open_file(path), path.parent)


def _open_file(path: Path) -> Container:
    if path.suffix == ".safetensors":
        tensors, header = safe_safetensors_load(path)
        if header.get("format") == FORMAT:
            return Container({"": tensors}, _own_header(header, path), "native", own=True)
        return Container({"": tensors})
    if is_torchscript(path):
        return _open_archive(path)
    content = safe_torch_load(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict.")
    found = Container(dict(_states(content)))
    if not found.states:
        raise UserError(f"{path} holds no tensors under any known key ({', '.join(map(str, list(content)[:8]))}).")
    meta = content.get("meta")
    if isinstance(meta, Mapping) and "tower_config" in meta:
        if not isinstance(meta["tower_config"], Mapping):
            raise UserError(f"{path}: meta['tower_config'] is {meta['tower_config']!r}, not a mapping of sizes.")
        found.facts, found.layout, found.own = dict(meta["tower_config"]), "native", True
    elif "state_dict" in found.states and "epoch" in content and "name" in content:
        found.layout = "open_clip"
    return found


def _own_header(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        told = json.loads(header.get("config", ""))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the header's config is not valid JSON ({error}). Write the file again.") from error
    if not isinstance(told, dict):
        raise UserError(f"{path}: the header's config is {json.dumps(told)[:60]}, not an object. Write the file again.")
    return told


def _states(content: Mapping[Any, Any], name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors inside a mapping, outer ones first."""
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if tensors:
        yield name, tensors
    if depth < _DEPTH:
        for key, value in content.items():
            if isinstance(value, Mapping):
                yield from _states(value, f"{name}.{key}" if name else str(key), depth + 1)


def _open_archive(path: Path) -> Container:
    archive = read_torchscript(path)
    notes = ""
    if archive.opaque:
        shown = ", ".join(n or "the whole" for n in archive.opaque[:5])
        notes = (
            f" {len(archive.opaque)} of its modules restore themselves by code of their own, which is not run: {shown}."
        )
    if not archive.tensors:
        raise UserError(f"{path} is a TorchScript archive without parameters.{notes}")
    facts: dict[str, Any] = {}
    for key, found in activation_of(archive, _TOWERS).items():
        if len(found) == 1:
            facts[key] = found.pop()
            if facts[key] == "gelu_tanh":
                raise UserError(f"{path}: its code computes GELU by tanh; these towers have quick_gelu and gelu.")
    # Half of an answer is none: the other tower would be guessed.
    facts = facts if len(facts) == len(_TOWERS) else {}
    return Container({"": archive.tensors}, facts, "openai_jit", notes=notes)


def _with_configs(found: Container, folder: Path) -> Container:
    """The same with what the config beside the file says, for files that say nothing themselves."""
    if found.own or found.layout == "openai_jit":
        return found
    hugging, open_clip = folder / "config.json", folder / "open_clip_config.json"
    of_hugging_face = any("vision_model." in k for state in found.states.values() for k in state)
    if of_hugging_face and hugging.is_file():
        found.facts = peer_configs.huggingface_facts(peer_configs.read_json(hugging), hugging)
        found.layout = "huggingface"
        _tell_statistics(folder / "preprocessor_config.json")
    elif not of_hugging_face and open_clip.is_file():
        found.facts = peer_configs.open_clip_facts(peer_configs.read_json(open_clip), open_clip)
        found.layout = "open_clip"
        _tell_statistics(open_clip)
    return found


def _tell_statistics(path: Path) -> None:
    if path.is_file() and (other := peer_configs.other_statistics(peer_configs.read_json(path))):
        logger.warning("%s: images were normalised by %s in training, and are by CLIP's numbers here.", path, other)


def _open_folder(path: Path) -> Container:
    for name in _WEIGHTS:
        if (path / name).is_file():
            found = _open_file(path / name)
            break
        if (path / f"{name}.index.json").is_file():
            name, found = name, Container({"": _sharded(path / f"{name}.index.json")})
            break
    else:
        raise UserError(f"{path} is a folder without weights ({', '.join(_WEIGHTS)}, or one of them .index.json).")
    found = _with_configs(found, path)
    if not found.facts:
        needed = "open_clip_config.json" if name.startswith("open_clip") else "config.json"
        raise UserError(f"{path} is a folder of {name} without {needed}, which tells its activation and heads.")
    return found


def _sharded(index: Path) -> dict[str, Tensor]:
    """Tensors of all files that an index names; each must hold what the index says."""
    told = peer_configs.section(peer_configs.read_json(index), "weight_map", index)
    if not told:
        raise UserError(f"{index} has no weight_map.")
    tensors: dict[str, Tensor] = {}
    for name in dict.fromkeys(told.values()):
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"{index} names the file {name!r}; shards lie beside their index.")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is not there: a shard was not copied or downloaded.")
        tensors.update(_open_file(index.parent / name).states.get("", {}))
    missing = [k for k in told if k not in tensors]
    if missing:
        raise UserError(f"The shards of {index} lack {len(missing)} tensors that it names, e.g. {missing[0]}.")
    return tensors
