"""Load referring expressions of any layout; the layout is detected from the content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.check import check_expression, check_fit
from smartclip_det.formats.expressions.dcube import read_dcube
from smartclip_det.formats.expressions.fgovd import read_fgovd
from smartclip_det.formats.expressions.flickr import read_flickr_entities
from smartclip_det.formats.expressions.jsonl import read_expression_lines
from smartclip_det.formats.expressions.mdetr import read_mdetr
from smartclip_det.formats.expressions.odvg import read_odvg
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.formats.expressions.ref_l4 import read_ref_l4
from smartclip_det.formats.expressions.refs import read_refs
from smartclip_det.formats.expressions.transvg import read_transvg
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.json_lines import first_json_line
from smartclip_det.utils.safe_load import load_plain_pickle

_PICKLES = (".p", ".pkl", ".pickle")
KNOWN = (
    "JSON lines; MDETR json; refs(SPLIT).p or its JSON copy with instances.json, or their folder (also gRefCOCO); "
    "ODVG lines; TransVG .pth; D-cube json; FG-OVD json; Ref-L4 parquet; the folder of Flickr30k Entities"
)


def load_expressions(
    path: str | Path, *, split: str | None = None, instances: str | Path | None = None, needs_sentences: bool = True
) -> list[Expression]:
    """Read referring expressions; boxes are xyxy pixels.

    Args:
        path: file or folder in any layout of :data:`KNOWN`.
        split: keep only this split; an unknown split is an error that lists the available ones.
        instances: ``instances.json`` of a refs file; default: same folder.
        needs_sentences: reject records without a sentence; scoring boxes does not need them.

    Raises:
        UserError: for missing or broken files, unknown layouts, repeated sentence ids, and for what ``check``
            rejects.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"No expression file at {path}. Check the path.")
    try:
        records = _of_folder(path, instances) if path.is_dir() else _of_file(path, instances)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: a record does not have the layout's fields ({type(error).__name__}: {error})."
        ) from error
    for record in records:
        check_expression(record, str(path), needs_sentences)
    repeated = len(records) - len({str(r.id) for r in records})
    if repeated:
        raise UserError(f"{path} repeats {repeated} sentence ids, so predictions cannot be matched. Make ids unique.")
    check_fit(records, path)
    return of_split(records, split, path) if split else records


def of_split(records: Sequence[Expression], split: str, path: Path) -> list[Expression]:
    """Select the expressions of one split.

    Raises:
        UserError: if there are none; lists the splits of the file.
    """
    # refclef has compound split names such as testAB.
    selected = [r for r in records if r.split == split or (split.startswith("test") and split in r.split)]
    if not selected:
        splits = sorted({r.split for r in records} - {""})
        raise UserError(f"{path} has no split {split!r}. It has: {', '.join(splits) or 'none'}.")
    return selected


def _of_folder(path: Path, instances: str | Path | None) -> list[Expression]:
    if any(path.glob("*.parquet")):
        return read_ref_l4(path)
    if (path / "Sentences").is_dir() or (path / "Annotations").is_dir():
        return read_flickr_entities(path)
    refs = path / "refs.json"
    if refs.is_file():
        return _of_file(refs, instances)
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    if len(pickles) == 1:
        return _of_file(path / pickles[0], instances)
    several = f" It has {', '.join(pickles)}: choose one of them." if pickles else ""
    raise UserError(f"The folder {path} has no expressions in a known layout.{several} Known: {KNOWN}.")


def _of_file(path: Path, instances: str | Path | None) -> list[Expression]:
    if path.suffix == ".parquet":
        return read_ref_l4(path)
    if path.suffix in (".pth", ".pt"):
        return read_transvg(path)
    if path.suffix in _PICKLES:
        return read_refs(load_plain_pickle(path), path, instances)
    if path.suffix != ".json":
        return _of_lines(path, first_json_line(path))
    try:
        data = read_json(path, "expression file")
    except UserError:
        # JSON lines files often have the suffix .json.
        first = first_json_line(path)
        if not _is_line(first):
            raise
        return _of_lines(path, first)
    return _of_lines(path, data) if _is_line(data) else _of_json(data, path, instances)


def _is_line(row: Any) -> bool:
    return isinstance(row, Mapping) and ("boxes" in row or "grounding" in row or "detection" in row)


def _of_lines(path: Path, first: Any) -> list[Expression]:
    if isinstance(first, Mapping) and "detection" in first and "grounding" not in first:
        raise UserError(
            f"{path} has ODVG detection lines, with classes instead of sentences. Use ODVG grounding lines."
        )
    return read_odvg(path) if isinstance(first, Mapping) and "grounding" in first else read_expression_lines(path)


def _of_json(data: Any, path: Path, instances: str | Path | None) -> list[Expression]:
    if isinstance(data, list):
        return read_refs(data, path, instances)
    parts = ("images", "annotations", "categories")
    lists = {k: data[k] for k in parts if isinstance(data, Mapping) and isinstance(data.get(k), list)}
    images = [i for i in lists.get("images", ()) if isinstance(i, Mapping)]
    if images and "caption" in images[0] and "annotations" in lists:
        return read_mdetr(data)
    if len(lists) == len(parts):
        if any("neg_category_ids" in a for a in lists["annotations"]):
            return read_fgovd(data, path)
        if any("sent_ids" in i for i in images) or any("is_negative" in c for c in lists["categories"]):
            return read_dcube(data, path)
    raise UserError(f"{path} has no expressions in a known layout. Known: {KNOWN}.")
