"""Where the configs are: in the package when it is installed, beside it in a checkout. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from smartclip_det.core.errors import UserError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]


def config_root() -> Path:
    """The folder of the configs that came with the package."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """Short names of the configs that came with the package (``ov_coco/open-vocab-rcnn_...``), sorted."""
    root = config_root()
    found = (p.relative_to(root) for p in root.rglob("*.py"))
    return sorted(p.with_suffix("").as_posix() for p in found if "_base_" not in p.parts)


def find_config(name: str | Path) -> Path:
    """The file of a config.

    Args:
        name: a path, with or without ``.py``; or the name of a config that came with the package, from any folder:
            ``ov_coco/NAME``, ``configs/ov_coco/NAME.py``, or ``NAME`` alone.

    Raises:
        UserError: when there is none, with the nearest names.
    """
    # Not with_suffix: names of configs have dots of their own.
    given = Path(name)
    if given.is_file():
        return given
    if (with_ending := Path(f"{given}.py")).is_file():
        return with_ending
    short = given.as_posix().removeprefix("./").removeprefix("configs/").removesuffix(".py")
    if not given.is_absolute() and ".." not in given.parts and (config_root() / f"{short}.py").is_file():
        return config_root() / f"{short}.py"
    names = config_names()
    alone = [n for n in names if n.split("/")[-1] == short]
    if len(alone) == 1:
        return config_root() / f"{alone[0]}.py"
    if alone:
        raise UserError(f"Several configs are named {given}; say which: {', '.join(alone)}.")
    raise UserError(f"No config at {given}. {_advice(given, short, names)}")


def _advice(given: Path, short: str, names: list[str]) -> str:
    if given.parent.is_dir() and (here := [p.name for p in given.parent.glob("*.py")]):
        near = nearest(given.name, here)
        if near:
            return f"Nearest in {given.parent}: {', '.join(near)}."
    # Whole names first, then their last parts, which people remember.
    near = nearest(short, names) or [
        n
        for last in nearest(short.split("/")[-1], [n.split("/")[-1] for n in names])
        for n in names
        if n.endswith(last)
    ]
    return f"Nearest of the package: {', '.join(near)}." if near else f"The package has: {', '.join(names)}."
