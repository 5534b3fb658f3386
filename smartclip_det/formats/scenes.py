"""Scene files: what is in each picture by words, ``[{"id": ..., "objects": [{"shape": ...}]}]``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.json_files import read_json


def read_scenes(path: str | Path, of_objects: Collection[str], of_scenes: Collection[str] = ()) -> dict[Any, Any]:
    """Scenes by image id.

    Args:
        path: a JSON list.
        of_objects: keys that every object must have.
        of_scenes: keys that every scene must have, beside ``id`` and ``objects``.

    Raises:
        UserError: for a file that cannot be read, entries that are no scenes, keys that are missing, ids that come
            twice.
    """
    entries = read_json(path, "scene file")
    if not isinstance(entries, list):
        raise UserError(f"{path} is no scene file: it holds no list of scenes.")
    found: dict[Any, Any] = {}
    for n, scene in enumerate(entries):
        if not isinstance(scene, dict) or "id" not in scene or not isinstance(scene.get("objects"), list):
            raise UserError(f"{path}: entry {n} is no scene; each has id and objects.")
        _need(path, f"scene {scene['id']!r}", scene, of_scenes)
        for o in scene["objects"]:
            _need(path, f"an object of scene {scene['id']!r}", o, of_objects)
        if scene["id"] in found:
            raise UserError(f"{path}: scene {scene['id']!r} comes twice.")
        found[scene["id"]] = scene
    return found


def _need(path: str | Path, what: str, entry: Any, keys: Collection[str]) -> None:
    missing = sorted(set(keys) - entry.keys()) if isinstance(entry, dict) else sorted(keys)
    if missing or not isinstance(entry, dict):
        raise UserError(
            f"{path}: {what} needs {', '.join(sorted(keys))}; it lacks {', '.join(missing)}. A toy world that "
            "an earlier version drew is drawn anew by `smartclip-det data make-toy`."
        )
