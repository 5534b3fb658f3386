"""Opening checkpoint files and folders: state dicts by name, and facts stored next to the tensors."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers import peer_configs
from smartclip_det.models.zoo.names import is_name, no_such_file
from smartclip_det.utils.safe_load import is_safetensors, is_torchscript, safe_safetensors_load, safe_torch_load
from smartclip_det.utils.torchscript import activation_of, read_torchscript

logger = logging.getLogger(__name__)
FORMAT = "smartclip_det.towers/1"
_TOWERS = {"activation": r"visual\b", "text_activation": r"(transformer|text)\b"}
#: Weight files in Hugging Face and open_clip folders; the first that exists is read.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_DEPTH = 3


@dataclass
class Container:
    """An opened file or folder.

    Attributes:
        states: tensors by the name of the mapping that holds them; ``""`` if the file is a single state dict.
        facts: ``TowerConfig`` keys that it stores.
        layout: name of the container's layout, if it has one.
        own: whether the facts are our own header, in which every key must be known.
        notes: what could not be read, reported if something is missing.
    """

    states: dict[str, dict[str, Tensor]]
    facts: dict[str, Any] = field(default_factory=dict)
    layout: str = ""
    own: bool = False
    notes: str = ""


def open_container(path: Path) -> Container:
    """Open a file or folder, with the config files next to it.

    Raises:
        UserError: for missing, broken or unsupported files, or pickled objects.
    """
    if path.name.endswith(".index.json"):
        return _open_folder(path.parent)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        if is_name(str(path)):
            raise UserError(
                f"No checkpoint at {path}, which is a name: SmartCLIP.from_pretrained or --encoder can download it."
            )
        raise no_such_file(str(path))
    return _with_configs(_open_file(path), path.parent)


def _open_file(path: Path) -> Container:
    # Files are renamed: the content decides. A broken file is described by its suffix.
    if is_safetensors(path) or (path.suffix == ".safetensors" and not zipfile.is_zipfile(path)):
        tensors, header = safe_safetensors_load(path)
        if header.get("format") == FORMAT:
            return Container({"": tensors}, _own_header(header, path), "native", own=True)
        return Container({"": tensors})
    if is_torchscript(path):
        return _open_archive(path)
    content = safe_torch_load(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} contains a {type(content).__name__}, not a state dict.")
    container = Container(dict(_states(content)))
    if not container.states:
        raise UserError(f"{path} has no tensors under any known key ({', '.join(map(str, list(content)[:8]))}).")
    meta = content.get("meta")
    if isinstance(meta, Mapping) and "tower_config" in meta:
        if not isinstance(meta["tower_config"], Mapping):
            raise UserError(f"{path}: meta['tower_config'] is {meta['tower_config']!r}, not a mapping of sizes.")
        container.facts, container.layout, container.own = dict(meta["tower_config"]), "native", True
    elif "state_dict" in container.states and "epoch" in content and "name" in content:
        container.layout = "open_clip"
    return container


def _own_header(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        config = json.loads(header.get("config", ""))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the header's config is not valid JSON ({error}). Write the file again.") from error
    if not isinstance(config, dict):
        raise UserError(
            f"{path}: the header's config is {json.dumps(config)[:60]}, not an object. Write the file again."
        )
    return config


def _states(content: Mapping[Any, Any], name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All mappings of names to tensors inside a mapping, outer ones first."""
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
        shown = ", ".join(n or "the root" for n in archive.opaque[:5])
        notes = (
            f" {len(archive.opaque)} of its modules can only be restored by their own code, which is not run: {shown}."
        )
    if not archive.tensors:
        raise UserError(f"{path} is a TorchScript archive without parameters.{notes}")
    facts: dict[str, Any] = {}
    for key, activations in activation_of(archive, _TOWERS).items():
        if len(activations) == 1:
            facts[key] = activations.pop()
            if facts[key] == "gelu_tanh":
                raise UserError(f"{path}: its code uses the tanh approximation of GELU; supported: quick_gelu, gelu.")
    # With only one of the two activations the other would be a guess, so neither is used.
    facts = facts if len(facts) == len(_TOWERS) else {}
    return Container({"": archive.tensors}, facts, "openai_jit", notes=notes)


def _with_configs(container: Container, folder: Path) -> Container:
    """Add facts from config files next to the weights, for files that store none themselves."""
    if container.own or container.layout == "openai_jit":
        return container
    hugging, open_clip = folder / "config.json", folder / "open_clip_config.json"
    of_hugging_face = any("vision_model." in k for state in container.states.values() for k in state)
    if of_hugging_face and hugging.is_file():
        container.facts = peer_configs.huggingface_facts(peer_configs.read_json(hugging), hugging)
        container.layout = "huggingface"
        _warn_statistics(folder / "preprocessor_config.json")
    elif not of_hugging_face and open_clip.is_file():
        container.facts = peer_configs.open_clip_facts(peer_configs.read_json(open_clip), open_clip)
        container.layout = "open_clip"
        _warn_statistics(open_clip)
    return container


def _warn_statistics(path: Path) -> None:
    if path.is_file() and (other := peer_configs.other_statistics(peer_configs.read_json(path))):
        logger.warning("%s: trained with image statistics %s; CLIP's are used here.", path, other)


def _open_folder(path: Path) -> Container:
    for name in _WEIGHTS:
        if (path / name).is_file():
            container = _open_file(path / name)
            break
        if (path / f"{name}.index.json").is_file():
            name, container = name, Container({"": _sharded(path / f"{name}.index.json")})
            break
    else:
        raise UserError(f"{path} has no weights ({', '.join(_WEIGHTS)}, or one of them with .index.json).")
    container = _with_configs(container, path)
    if not container.facts:
        needed = "open_clip_config.json" if name.startswith("open_clip") else "config.json"
        raise UserError(f"{path} has {name} but no {needed}, which stores its activation and heads.")
    return container


def _sharded(index: Path) -> dict[str, Tensor]:
    """Tensors of all files in an index; each file must contain what the index lists."""
    weight_map = peer_configs.section(peer_configs.read_json(index), "weight_map", index)
    if not weight_map:
        raise UserError(f"{index} has no weight_map.")
    tensors: dict[str, Tensor] = {}
    for name in dict.fromkeys(weight_map.values()):
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"{index} lists the file {name!r}; shards must be in the folder of their index.")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} lists {name}, which does not exist: a shard was not copied or downloaded.")
        tensors.update(_open_file(index.parent / name).states.get("", {}))
    missing = [k for k in weight_map if k not in tensors]
    if missing:
        raise UserError(f"The shards of {index} lack {len(missing)} tensors that it lists, e.g. {missing[0]}.")
    return tensors
