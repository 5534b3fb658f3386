"""Flickr30k Entities (arXiv 1505.04870): phrases of captions with the boxes of their entities."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.utils.boxes import Box

_PHRASE = re.compile(r"\[/EN#(\d+)/([^ ]+) ([^\]]+)\]")


def read_flickr_entities(folder: str | Path) -> list[Expression]:
    """Read each phrase of each caption, with all boxes of its entity.

    Args:
        folder: has ``Sentences/NAME.txt``, ``Annotations/NAME.xml``, and optionally ``train.txt``, ``val.txt`` and
            ``test.txt`` with names. Phrases of entities without boxes (scenes, other captions) have no target.

    Raises:
        UserError: for missing folders or a caption without its annotations.
    """
    folder = Path(folder)
    texts = sorted((folder / "Sentences").glob("*.txt"))
    if not texts:
        raise UserError(f"{folder} is not a Flickr30k Entities folder: it needs Sentences/*.txt and Annotations/*.xml.")
    splits = {}
    for split in ("train", "val", "test"):
        listed = folder / f"{split}.txt"
        if listed.is_file():
            splits.update(dict.fromkeys(listed.read_text(encoding="utf-8").split(), split))
    out = []
    for text in texts:
        boxes, size = _entities(folder / "Annotations" / f"{text.stem}.xml")
        for n, line in enumerate(text.read_text(encoding="utf-8").splitlines()):
            for k, (entity, _kind, phrase) in enumerate(_PHRASE.findall(line)):
                out.append(
                    Expression(
                        f"{text.stem}_{n}_{k}",
                        text.stem,
                        f"{text.stem}.jpg",
                        phrase,
                        tuple(boxes.get(entity, ())),
                        *size,
                        split=splits.get(text.stem, ""),
                        dataset="flickr30k-entities",
                    )
                )
    return out


def _entities(path: Path) -> tuple[dict[str, list[Box]], tuple[int, int]]:
    """Return boxes by entity, and (width, height)."""
    if not path.is_file():
        raise UserError(f"No annotations at {path}: each file in Sentences needs one.")
    try:
        root = ET.parse(path).getroot()
        size = (int(root.findtext("size/width", "0")), int(root.findtext("size/height", "0")))
        boxes: dict[str, list[Box]] = {}
        for thing in root.iter("object"):
            for box in thing.iter("bndbox"):
                x1, y1, x2, y2 = (float(box.findtext(k, "nan")) for k in ("xmin", "ymin", "xmax", "ymax"))
                for name in thing.iter("name"):
                    boxes.setdefault(str(name.text), []).append((x1, y1, x2, y2))
    except (ET.ParseError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Flickr30k Entities annotations ({error}).") from error
    return boxes, size
