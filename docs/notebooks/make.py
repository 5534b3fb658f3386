"""Execute the notebooks on a finished toy run: `python docs/notebooks/make.py [--write]`.

The sources are the .py files (jupytext's percent format); `--write` makes each .ipynb of them, with its outputs.
Without it nothing is written: every cell must run, and each pair must hold the same cells. Needs the extra `docs`.
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
#: Colours of a kept picture.
COLOURS = 96
#: Log lines, which have a date and would differ each time.
LOG = re.compile(r"^(\d\d/\d\d [\d:]+ - mmengine - |Loads checkpoint by ).*\n", flags=re.M)


def sources() -> list[Path]:
    """The notebooks' .py files."""
    return sorted(p for p in FOLDER.glob("*.py") if p.name != "make.py")


def cells(notebook: Any) -> list[tuple[str, str]]:
    """Kind and text of each cell."""
    return [(c.cell_type, c.source) for c in notebook.cells]


def in_sync(source: Path) -> bool:
    """Whether the .ipynb beside a source holds the same cells."""
    pair = source.with_suffix(".ipynb")
    return pair.is_file() and cells(jupytext.read(source)) == cells(nbformat.read(pair, as_version=4))


def execute(source: Path) -> Any:
    """The notebook with its outputs, run in its own folder."""
    notebook = jupytext.read(source)
    with TemporaryDirectory() as folder:  # Its sockets: no port of the network is opened.
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
    """An output as it is kept: one small picture in place of several forms of it, printed lines without logs."""
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
    """Write a notebook so that the same cells and outputs are the same bytes."""
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
    """Run all, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks, without ending; default: all")
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
