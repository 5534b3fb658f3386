"""Named retrieval protocols with their sizes (pretrain reference 2.1, 3). "Flickr30k" alone means three different sets.

A protocol reads its data set from a folder and checks that it is whole: numbers of a part are never called by the name
of the whole.
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
    """An image, in a file or a shard, and the texts that it is to be found by."""

    id: str
    path: Path | Member
    texts: tuple[str, ...]


@dataclass(frozen=True)
class CaptionProtocol:
    """One retrieval test.

    Attributes:
        images: number of images of the whole set.
        texts: number of texts.
        files: what its folder holds, for messages.
        read: the images of a folder.
        source: who measures by it.
    """

    images: int
    texts: int
    files: str
    read: Callable[[Path], Iterator[CaptionedImage]]
    source: str


def load_protocol(
    name: str, folder: str | Path, *, partial: bool = False
) -> tuple[list[CaptionedImage], dict[str, Any]]:
    """The images of a protocol, and the facts for its stamp.

    Args:
        name: in :data:`PROTOCOLS`.
        folder: of the data set.
        partial: take what is there; the stamp then says ``partial``.

    Raises:
        UserError: for missing files, or other sizes than the protocol's.
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
        raise UserError(f"{root}: the caption file of {name} has another layout ({error!r}).") from error
    broken = next((i for i in images if not all(isinstance(t, str) for t in i.texts)), None)
    if broken:
        raise UserError(f"{root}: image {broken.id} of {name} has texts that are none: {broken.texts!r}.")
    texts = sum(len(i.texts) for i in images)
    whole = (len(images), texts) == (protocol.images, protocol.texts)
    if not whole and not partial:
        raise UserError(
            f"{name} is {protocol.images:,} images with {protocol.texts:,} texts; {root} has {len(images):,} with "
            f"{texts:,}. To measure on what is there, under the name of a part: --partial."
        )
    if not images:
        raise UserError(f"{root} has no image of {name}.")
    return images, {
        "set": name if whole else f"{name}, partial",
        "images": len(images),
        "texts": texts,
        "read_as": protocol.source,
    }


def load_captions(
    source: Path, folder: Path | None = None, which: str = "all", tell: Callable[[str], None] = lambda _: None
) -> tuple[list[CaptionedImage], dict[str, Any]]:
    """The different images of any caption file, and the facts for a stamp.

    An image of several records, under one name or byte by byte, is one image with the texts of all of them.

    Args:
        source: caption file, folder of pairs, or shards.
        folder: that image names are in; default: the source, or the folder that it is in.
        which: texts to take, a name of ``caption_groups.TEXTS``.
        tell: is given what the source holds, and what was left out or joined.

    Raises:
        UserError: as ``read_caption_records``; images that are not there; no text of the kind asked for.
    """
    records, counts = read_caption_records(source)
    tell(counts.summary(str(source), len(records)))
    root = folder or (source if source.is_dir() else source.parent)
    named = by_image(records)
    found = same_pictures(named, root)
    kept, facts = choose_texts(found, which, str(source))
    images = [CaptionedImage(i.id, source_of(i.image, root), i.texts(which)) for i in kept]
    texts = sum(len(i.texts) for i in images)
    tell(
        f"{len(images):,} different images of {len(records):,} records; {which} texts: {texts:,} "
        f"({facts['long_texts']:,} long, {facts['short_texts']:,} short)"
    )
    joined = sorted({i.id for i in named} - {i.id for i in found})
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
    """``results_20130124.token``: NAME.jpg#N, a tab, the caption; five rows an image (as Long-CLIP reads it)."""
    texts: dict[str, list[str]] = {}
    for number, line in enumerate((root / "results_20130124.token").read_text(encoding="utf-8").splitlines(), 1):
        name, tab, text = line.partition("\t")
        if not tab or "#" not in name:
            raise UserError(f"{root}/results_20130124.token, line {number}, is not NAME.jpg#N, a tab and a caption.")
        texts.setdefault(name.rpartition("#")[0], []).append(text)
    for name, found in texts.items():
        yield CaptionedImage(name, root / "flickr30k-images" / name, tuple(found))


def _urban1k(root: Path) -> Iterator[CaptionedImage]:
    """``image/NAME.jpg`` and the first line of ``caption/NAME.txt``."""
    for path in sorted((root / "image").iterdir()):
        if path.suffix.lower() in IMAGE_ENDINGS and not is_debris(path.name):
            found = root / "caption" / f"{path.stem}.txt"
            if not found.is_file():
                raise FileNotFoundError(2, "", str(found))
            text = read_text(found, "caption").split("\n")[0]
            yield CaptionedImage(path.stem, path, (text,))


def _sharegpt4v(first_sentence: bool) -> Callable[[Path], Iterator[CaptionedImage]]:
    """The first 1,000 records of the share-captioner file: whole captions, or their first sentences."""

    def read(root: Path) -> Iterator[CaptionedImage]:
        found = sorted(root.glob("share-captioner_coco_lcs_sam_1246k_1107*.json"))
        if not found:
            raise FileNotFoundError(2, "", str(root / "share-captioner_coco_lcs_sam_1246k_1107.json"))
        records, _ = read_caption_records(found[0], "share-captioner")
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
    """``annotations/*.json`` of Densely Captioned Images: short caption and extra text as one (Long-CLIP's peers)."""
    folder = root / "annotations"
    if not folder.is_dir():
        raise FileNotFoundError(2, "", str(folder))
    for path in sorted(folder.glob("*.json")):
        r = read_json(path, "DCI annotation")
        yield CaptionedImage(path.stem, root / "photos" / r["image"], (f"{r['short_caption']}\n{r['extra_caption']}",))


def _listed(name: str, *keys: str) -> Callable[[Path], Iterator[CaptionedImage]]:
    """JSON lines of a path under ``image`` (or ``image/key``) and a text under one of the keys."""

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
