"""Locate finished runs of ``make toy``: their weights and scenes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.json_files import read_json

#: Environment variable with the folder of a run.
VARIABLE = "SMARTCLIP_TOY_RUN"
#: Output folders of ``make toy`` and ``make toy QUICK=1``, relative to the folder that they were started in.
FOLDERS = ("work_dirs/toy", "work_dirs/toy_quick")
#: Config of the detector of a run, and the template of its training texts.
TOY_DETECTOR, TOY_TEMPLATE = "toy/open-vocab-rcnn_smartclip-toy_toy", "{article} {}"
#: Towers trained as CLIP and as SmartCLIP, the detector's heads, and the grounding head.
WEIGHTS = ("clip", "smartclip", "detector", "referring")


@dataclass(frozen=True)
class ToyRun:
    """A finished run.

    Attributes:
        folder: output folder of the run: ``checkpoints/``, ``report.html``, ``summary.json``.
        data: its scenes: ``images/``, ``annotations/``, ``refs/``.
        quick: whether it is a small run (``QUICK=1``), whose models have learned little.
    """

    folder: Path
    data: Path
    quick: bool

    def checkpoint(self, name: str) -> str:
        """Weights of ``clip`` or ``smartclip`` (towers), ``detector`` or ``referring`` (heads).

        Raises:
            UserError: for other names, and for a missing file.
        """
        path = self.folder / "checkpoints" / f"{check_choice('name', name, WEIGHTS)}.pth"
        if not path.is_file():
            raise UserError(f"No {path}: this run is not finished. Start it again; finished steps are kept.")
        return str(path)


def find_toy_run(folder: str | Path | None = None, *, data: str | Path | None = None) -> ToyRun:
    """Find a run: in ``folder``, else in the folder given by ``SMARTCLIP_TOY_RUN``, else the nearest one.

    The nearest is ``work_dirs/toy``, then ``work_dirs/toy_quick``, of the current folder or one of its parents. Paths
    are relative to the current folder.

    Args:
        folder: folder of the run; None: search.
        data: its scenes, if they were moved; None: where the run recorded them.

    Raises:
        UserError: if there is no finished run; the message has the command that makes one.
    """
    named = folder or os.environ.get(VARIABLE)
    candidates = [Path(named)] if named else list(_nearby())
    for path in candidates:
        if (path / "facts.json").is_file():
            return _read(path, data)
    looked = f"in {named}" if named else f"in {' or '.join(FOLDERS)}, from {Path.cwd()} upwards"
    raise UserError(
        f"No finished toy run {looked}. Run `make toy QUICK=1` (minutes; the models learn little) or `make toy` in the "
        f"repository first, or set {VARIABLE} to the folder of a run."
    )


def _nearby() -> Iterator[Path]:
    here = Path.cwd()
    return (Path(os.path.relpath(parent / name)) for parent in (here, *here.parents) for name in FOLDERS)


def _read(folder: Path, moved: str | Path | None) -> ToyRun:
    facts = read_json(folder / "facts.json", "facts of the toy run")
    try:
        written, quick = Path(facts["data"]), bool(facts["quick"])
    except (KeyError, TypeError):
        raise UserError(
            f"{folder / 'facts.json'} does not record the scenes of the run (data, quick). Run `make toy` again."
        ) from None
    if moved is not None:
        return ToyRun(folder, Path(moved), quick)
    # A relative path refers to the folder that the run was started in, two levels above work_dirs/toy.
    for data in (folder.resolve().parents[1] / written, folder / "../.." / written, written):
        if (data / "world.json").is_file():
            return ToyRun(folder, data if written.is_absolute() else Path(os.path.relpath(data)), quick)
    raise UserError(f"The scenes of the toy run in {folder} are no longer in {written}. Run `make toy` again.")
