"""Execute the notebooks on a finished toy run: `python docs/notebooks/make.py [--write]`.

The sources are the .py files (jupytext's percent format); `--write` creates an .ipynb from each, with outputs. Without
it nothing is written; every cell must run, and both files of a pair must contain the same cells. Needs the extra
`docs`.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import time
from base64 import b64decode, b64encode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image
from traitlets.config import Config

from smartclip_det.apis.toy_run import find_toy_run
from smartclip_det.core.errors import UserError

FOLDER = Path(__file__).resolve().parent
#: Number of colours of stored images.
COLOURS = 96
#: Log lines with dates, which would differ in every run.
LOG = re.compile(r"^(\d\d/\d\d [\d:]+ - mmengine - |Loads checkpoint by ).*\n", flags=re.M)


def sources() -> list[Path]:
    """The notebooks' .py files."""
    return sorted(p for p in FOLDER.glob("*.py") if p.name != "make.py")


def cells(notebook: Any) -> list[tuple[str, str]]:
    """Kind and text of each cell."""
    return [(c.cell_type, c.source) for c in notebook.cells]


def in_sync(source: Path) -> bool:
    """Whether a source and its .ipynb contain the same cells."""
    pair = source.with_suffix(".ipynb")
    return pair.is_file() and cells(jupytext.read(source)) == cells(nbformat.read(pair, as_version=4))


def execute(source: Path) -> Any:
    """Execute a notebook in its own folder; returns it with outputs."""
    notebook = jupytext.read(source)
    with TemporaryDirectory() as folder:  # For sockets, so that no network port is opened.
        sockets = Config({"ConnectionFileMixin": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=600,
            coalesce_streams=True,
            resources={"metadata": {"path": str(FOLDER)}},
            config=sockets,
        )
        client.execute()
    return notebook


def small(output: Any) -> Any:
    """Reduce an output for storage: one small image instead of several representations, text without log lines."""
    if output.output_type == "stream":
        output["text"] = LOG.sub("", output["text"])
    data = output.get("data", {})
    if "image/png" in data:
        buffer = io.BytesIO()
        picture = Image.open(io.BytesIO(b64decode(data["image/png"]))).convert("RGB")
        picture.quantize(COLOURS).save(buffer, "PNG", optimize=True)
        output["data"] = {"image/png": b64encode(buffer.getvalue()).decode()}
        output["metadata"] = {}
    return output


def write(notebook: Any, path: Path) -> None:
    """Write a notebook deterministically."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            kept = [small(o) for o in cell.outputs if o.output_type != "stream" or o.name == "stdout"]
            cell.outputs = [o for o in kept if o.get("text", "kept").strip()]
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.write(notebook, path)


def main() -> int:
    """Run all notebooks, or the given ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks, without suffix; default: all")
    parser.add_argument("--write", action="store_true", help="write each .ipynb with its outputs")
    options = parser.parse_args()
    chosen = [s for s in sources() if not options.names or s.stem in options.names]
    try:
        find_toy_run()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for source in chosen:
        start = time.perf_counter()
        if not options.write and not in_sync(source):
            print(f"{source.name} and its .ipynb differ: run `python docs/notebooks/make.py --write`.", file=sys.stderr)
            return 1
        try:
            notebook = execute(source)
        except CellExecutionError as error:
            print(f"{source.name}: {error}", file=sys.stderr)
            return 1
        if options.write:
            write(notebook, source.with_suffix(".ipynb"))
        print(f"{source.stem}: {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
