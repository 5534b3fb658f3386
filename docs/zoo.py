"""Tables of the model zoo, generated from ``configs/*/metafile.yml`` and the registry of named weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[1]
STATUSES = {
    "measured": "trained at toy size; numbers, with commands, in the recipe",
    "step": "built with small encoders in the tests, which run a training step",
    "builds": "model and optimizer are built with small encoders in the tests",
}


def collections() -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each collection with its models: ``Name``, ``Config``, ``Status``, ``Command`` and optionally ``Ran``."""
    found = []
    for path in sorted((REPO / "configs").glob("*/metafile.yml")):
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
        (collection,) = record["Collections"]
        models = []
        for model in record["Models"]:
            name = model["Config"].removeprefix("configs/").removesuffix(".py")
            command = model.get("Command", collection["Command"]).format(config=name)
            models.append({"Ran": "", **model, "Command": command})
        found.append((collection, models))
    return found


def configs_tables() -> str:
    """A section per collection: its configs, and one command of each kind."""
    parts = ["| status | meaning |", "|---|---|", *(f"| {k} | {v} |" for k, v in STATUSES.items())]
    for collection, models in collections():
        parts += ["", f"### {collection['Title']}", ""]
        parts += [f"Recipe: [{collection['README']}](../{collection['README']})", ""]
        parts += ["| config | status | what was run |", "|---|---|---|"]
        parts += [f"| [{m['Name']}](../{m['Config']}) | {m['Status']} | {m['Ran']} |" for m in models]
        # Commands that differ in more than the config name.
        kinds = {m["Command"].replace(m["Name"], ""): m["Command"] for m in reversed(models)}
        parts += ["", "```bash", *reversed(kinds.values()), "```"]
    return "\n".join(parts)


def weights_table() -> str:
    """Named weights, their sizes, licences and sources."""
    registry = json.loads((REPO / "smartclip_det/models/zoo/registry.json").read_text(encoding="utf-8"))
    parts = [
        "| name | kind | image size | text tokens | licence | size | first source |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, weights in registry.items():
        first = weights["sources"][0]
        size = next((s["megabytes"] for s in weights["sources"] if s["megabytes"]), None)
        cells = [
            f"`{name}`",
            weights["kind"],
            f"{weights['image_size']} px" if weights.get("image_size") else "",
            str(weights.get("context_length") or ""),
            weights["licence"] or "not stated",
            f"{size} MB" if size else "not known",
            f"`{first.get('hub') or first['address'].rsplit('/', 1)[1]}`",
        ]
        parts.append(f"| {' | '.join(cells)} |")
    return "\n".join(parts)


def published_table() -> str:
    """Published results of the named weights, for comparison with your own runs."""
    registry = json.loads((REPO / "smartclip_det/models/zoo/registry.json").read_text(encoding="utf-8"))
    sets = list(dict.fromkeys(s for w in registry.values() for s in w.get("published", {})))
    parts = [f"| name | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for name, weights in registry.items():
        if published := weights.get("published"):
            cells = [" / ".join(str(n) for n in published.get(s, [])) for s in sets]
            parts.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(parts)
