"""Named retrieval protocols and their sizes.

"Flickr30k" alone can mean three different sets: all 31,783 images (Long-CLIP, arXiv 2403.15378), the 31,014 of
Karpathy's file, or its test split of 1,000 images.

A protocol reads its data set from a folder and checks that it is complete, so results on a part are never reported
under the name of the full set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.caption_groups import by_image, choose_texts, same_pictures, source_of
from smartclip_det.formats.captions import IMAGE_ENDINGS, read_caption_records
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.shards import Member
from smartclip_det.formats.texts import read_text
from smartclip_det.utils.files import is_debris


@dataclass(frozen=True)
class CaptionedImage:
    """An image, in a file or a shard, and its texts."""

    id: str
    path: Path | Member
    texts: tuple[str, ...]


@dataclass(frozen=True)
class CaptionProtocol:
    """A retrieval protocol.

    Attributes:
        images: number of images in the full set.
        texts: number of texts in the full set.
        files: contents of its folder, for messages.
        read: reads the images of a folder.
        source: origin of the protocol.
    """

    images: int
    texts: int
    files: str
    read: Callable[[Path], Iterator[CaptionedImage]]
    source: str


def load_protocol(
    name: str, folder: str | Path, *, partial: bool = False
) -> tuple[list[CaptionedImage], dict[str, Any]]:
    """Load the images of a protocol, and the facts for its stamp.

    Args:
        name: protocol in :data:`PROTOCOLS`.
        folder: folder of the data set.
        partial: accept an incomplete set; recorded in the stamp as ``partial``.

    Raises:
        UserError: for missing files, or sizes that differ from the protocol's.
    """
    protocol = PROTOCOLS[check_choice("retrieval protocol", name, PROTOCOLS)]
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"No folder at {root}. {name} needs {protocol.files} in it.")
    try:
        images = list(protocol.read(root))
    except FileNotFoundError as error:
        raise UserError(f"{root} lacks {Path(str(error.filename)).name}; {name} needs {protocol.files}.") from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{root}: the caption file of {name} has an unexpected layout ({error!r}).") from error
    broken = next((i for i in images if not all(isinstance(t, str) for t in i.texts)), None)
    if broken:
        raise UserError(f"{root}: image {broken.id} of {name} has texts that are not strings: {broken.texts!r}.")
    texts = sum(len(i.texts) for i in images)
    complete = (len(images), texts) == (protocol.images, protocol.texts)
    if not complete and not partial:
        raise UserError(
            f"{name} is {protocol.images:,} images with {protocol.texts:,} texts; {root} has {len(images):,} with "
            f"{texts:,}. Use --partial to measure on an incomplete set."
        )
    if not images:
        raise UserError(f"{root} has no image of {name}.")
    return images, {
        "set": name if complete else f"{name}, partial",
        "images": len(images),
        "texts": texts,
        "read_as": protocol.source,
    }


def load_captions(
    source: Path, folder: Path | None = None, which: str = "all", tell: Callable[[str], None] = lambda _: None
) -> tuple[list[CaptionedImage], dict[str, Any]]:
    """Load the distinct images of any caption file, and the facts for a stamp.

    Records with the same image, by name or byte for byte, are merged into one image with all their texts.

    Args:
        source: caption file, folder of pairs, or shards.
        folder: root folder of image names; default: the source, or its folder.
        which: texts to use, a kind in ``caption_groups.TEXTS``.
        tell: called with a summary of the source, and of skipped and merged records.

    Raises:
        UserError: as ``read_caption_records``; missing images; no text of the requested kind.
    """
    records, counts = read_caption_records(source)
    tell(counts.summary(str(source), len(records)))
    root = folder or (source if source.is_dir() else source.parent)
    named = by_image(records)
    merged = same_pictures(named, root)
    selected, facts = choose_texts(merged, which, str(source))
    images = [CaptionedImage(i.id, source_of(i.image, root), i.texts(which)) for i in selected]
    texts = sum(len(i.texts) for i in images)
    tell(
        f"{len(images):,} different images of {len(records):,} records; {which} texts: {texts:,} "
        f"({facts['long_texts']:,} long, {facts['short_texts']:,} short)"
    )
    joined = sorted({i.id for i in named} - {i.id for i in merged})
    if joined:
        facts["joined_ids"] = joined
    return images, {"set": str(source), "images": len(images), "texts": texts, **facts, **counts}


def _coco(root: Path) -> Iterator[CaptionedImage]:
    records, _ = read_caption_records(root / "annotations/captions_val2017.json", "coco")
    for r in records:
        yield CaptionedImage(str(r.id), root / "val2017" / r.image, tuple(r.short[:5]))


def _flickr(split: str | None) -> Callable[[Path], Iterator[CaptionedImage]]:
    """Karpathy's ``dataset_flickr30k.json``: all 31,014 images, or those of one split."""

    def read(root: Path) -> Iterator[CaptionedImage]:
        for i in read_json(root / "dataset_flickr30k.json", "Karpathy's file")["images"]:
            if split is None or i["split"] == split:
                texts = tuple(s["raw"] for s in i["sentences"][:5])
                yield CaptionedImage(i["filename"], root / "flickr30k-images" / i["filename"], texts)

    return read


def _flickr_full(root: Path) -> Iterator[CaptionedImage]:
    """``results_20130124.token``: NAME.jpg#N, a tab, the caption; five rows per image (as read by Long-CLIP)."""
    texts: dict[str, list[str]] = {}
    for number, line in enumerate((root / "results_20130124.token").read_text(encoding="utf-8").splitlines(), 1):
        name, tab, text = line.partition("\t")
        if not tab or "#" not in name:
            raise UserError(f"{root}/results_20130124.token, line {number}, is not NAME.jpg#N, a tab and a caption.")
        texts.setdefault(name.rpartition("#")[0], []).append(text)
    for name, captions in texts.items():
        yield CaptionedImage(name, root / "flickr30k-images" / name, tuple(captions))


def _urban1k(root: Path) -> Iterator[CaptionedImage]:
    """``image/NAME.jpg`` and the first line of ``caption/NAME.txt``."""
    for path in sorted((root / "image").iterdir()):
        if path.suffix.lower() in IMAGE_ENDINGS and not is_debris(path.name):
            caption = root / "caption" / f"{path.stem}.txt"
            if not caption.is_file():
                raise FileNotFoundError(2, "", str(caption))
            text = read_text(caption, "caption").split("\n")[0]
            yield CaptionedImage(path.stem, path, (text,))


def _sharegpt4v(first_sentence: bool) -> Callable[[Path], Iterator[CaptionedImage]]:
    """The first 1,000 records of the share-captioner file: whole captions, or their first sentences."""

    def read(root: Path) -> Iterator[CaptionedImage]:
        files = sorted(root.glob("share-captioner_coco_lcs_sam_1246k_1107*.json"))
        if not files:
            raise FileNotFoundError(2, "", str(root / "share-captioner_coco_lcs_sam_1246k_1107.json"))
        records, _ = read_caption_records(files[0], "share-captioner")
        for n, r in enumerate(records[:1000]):
            text = r.long.replace("\n", " ")
            yield CaptionedImage(f"{n}:{r.id}", root / r.image, (text.split(". ")[0] if first_sentence else text,))

    return read


def _docci(root: Path) -> Iterator[CaptionedImage]:
    """``docci_descriptions.jsonlines``, split test."""
    for r in _json_lines(root / "docci_descriptions.jsonlines"):
        if r["split"] == "test":
            yield CaptionedImage(r["example_id"], root / "images" / r["image_file"], (r["description"],))


def _dci(root: Path) -> Iterator[CaptionedImage]:
    """``annotations/*.json`` of Densely Captioned Images: short caption and extra text, joined."""
    folder = root / "annotations"
    if not folder.is_dir():
        raise FileNotFoundError(2, "", str(folder))
    for path in sorted(folder.glob("*.json")):
        r = read_json(path, "DCI annotation")
        yield CaptionedImage(path.stem, root / "photos" / r["image"], (f"{r['short_caption']}\n{r['extra_caption']}",))


def _listed(name: str, *keys: str) -> Callable[[Path], Iterator[CaptionedImage]]:
    """Read JSON lines with an image path in ``image`` (or ``image/key``) and a text in one of the keys."""

    def read(root: Path) -> Iterator[CaptionedImage]:
        for number, r in enumerate(_json_lines(root / name)):
            image = str(r["image"] if "image" in r else r["image/key"])
            path = root / "images" / (image if Path(image).suffix else f"{image}.jpg")
            yield CaptionedImage(f"{number}:{image}", path, (next(r[k] for k in keys if k in r),))

    return read


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}, line {number}, is not valid JSON ({error}).") from error


_FLICKR = "dataset_flickr30k.json (Karpathy) and flickr30k-images/"
_SHARE = "share-captioner_coco_lcs_sam_1246k_1107.json and the folders that it names"
PROTOCOLS: dict[str, CaptionProtocol] = {
    "coco-5k": CaptionProtocol(
        5000, 25_000, "annotations/captions_val2017.json and val2017/", _coco, "val2017, first 5 captions"
    ),
    "flickr30k-full": CaptionProtocol(
        31_783, 158_915, "results_20130124.token and flickr30k-images/", _flickr_full, "Long-CLIP, SmartCLIP"
    ),
    "flickr30k-31014": CaptionProtocol(31_014, 155_070, _FLICKR, _flickr(None), "DeBias-CLIP"),
    "flickr30k-1k": CaptionProtocol(1000, 5000, _FLICKR, _flickr("test"), "FG-CLIP, SigLIP"),
    "urban1k": CaptionProtocol(1000, 1000, "image/NAME.jpg and caption/NAME.txt", _urban1k, "Long-CLIP"),
    "sharegpt4v-1k": CaptionProtocol(1000, 1000, _SHARE, _sharegpt4v(False), "first 1,000 records, whole captions"),
    "sharegpt4v-1k-first": CaptionProtocol(1000, 1000, _SHARE, _sharegpt4v(True), "the same, first sentences"),
    "docci": CaptionProtocol(5000, 5000, "docci_descriptions.jsonlines and images/", _docci, "split test"),
    "dci": CaptionProtocol(
        7805, 7805, "annotations/*.json and photos/", _dci, "short caption and extra text of all images"
    ),
    "long-dci": CaptionProtocol(
        7602,
        7602,
        "long_dci.jsonl (image, caption) and images/",
        _listed("long_dci.jsonl", "caption"),
        "Long-DCI's list",
    ),
    "iiw": CaptionProtocol(
        400,
        400,
        "IIW-400/data.jsonl as iiw400.jsonl (image/key, IIW) and images/",
        _listed("iiw400.jsonl", "IIW"),
        "ImageInWords, IIW-400",
    ),
}
