"""Scene files: the objects of each image in words, ``[{"id": ..., "objects": [{"shape": ...}]}]``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.json_files import read_json


def read_scenes(path: str | Path, of_objects: Collection[str], of_scenes: Collection[str] = ()) -> dict[Any, Any]:
    """Read scenes by image id.

    Args:
        path: a JSON list.
        of_objects: keys that every object must have.
        of_scenes: keys that every scene must have, in addition to ``id`` and ``objects``.

    Raises:
        UserError: for an unreadable file, invalid entries, missing keys, and repeated ids.
    """
    entries = read_json(path, "scene file")
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a scene file: expected a list of scenes.")
    scenes: dict[Any, Any] = {}
    for n, scene in enumerate(entries):
        if not isinstance(scene, dict) or "id" not in scene or not isinstance(scene.get("objects"), list):
            raise UserError(f"{path}: entry {n} is not a scene; each needs id and objects.")
        _need(path, f"scene {scene['id']!r}", scene, of_scenes)
        for o in scene["objects"]:
            _need(path, f"an object of scene {scene['id']!r}", o, of_objects)
        if scene["id"] in scenes:
            raise UserError(f"{path}: scene {scene['id']!r} comes twice.")
        scenes[scene["id"]] = scene
    return scenes


def _need(path: str | Path, what: str, entry: Any, keys: Collection[str]) -> None:
    missing = sorted(set(keys) - entry.keys()) if isinstance(entry, dict) else sorted(keys)
    if missing or not isinstance(entry, dict):
        raise UserError(
            f"{path}: {what} needs {', '.join(sorted(keys))}; it lacks {', '.join(missing)}. If the toy world is from "
            "an earlier version, generate it again with `smartclip-det data make-toy`."
        )
