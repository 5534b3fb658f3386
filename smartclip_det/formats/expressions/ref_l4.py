"""Ref-L4 (arXiv 2406.16866): parquet files of expressions."""

from __future__ import annotations

from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.utils.boxes import to_xyxy


def read_ref_l4(path: str | Path) -> list[Expression]:
    """Ref-L4 (arXiv 2406.16866): read one parquet file, or all of a folder (``ref-l4-val.parquet`` and test).

    Raises:
        UserError: without pyarrow (extra ``ref-l4``), for a broken file, or one without the benchmark's columns.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            "Ref-L4 comes as parquet files, which need pyarrow: pip install 'smartclip_det[ref-l4]'."
        ) from error
    path, out = Path(path), []
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        try:
            rows = parquet.read_table(file).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file} is not a readable parquet file; it may be truncated. ({error})") from error
        missing = [k for k in ("id", "caption", "bbox", "file_name", "ori_category_id") if rows and k not in rows[0]]
        if missing:
            raise UserError(
                f"{file} is not a Ref-L4 file: it has no column {', '.join(missing)}; it has {', '.join(rows[0])}."
            )
        for row in rows:
            out.append(
                Expression(
                    row["id"],
                    row.get("image_id", row["file_name"]),
                    row["file_name"],
                    row["caption"],
                    (to_xyxy(row["bbox"]),),
                    int(row.get("width") or 0),
                    int(row.get("height") or 0),
                    dataset="ref-l4",
                    split=row.get("split") or file.stem.rpartition("-")[2],
                    category=str(row["ori_category_id"]),
                )
            )
    return out
