"""Locating configs: inside the installed package, or next to it in a checkout. No heavy imports."""

from __future__ import annotations

from pathlib import Path

from smartclip_det.core.errors import UserError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]


def config_root() -> Path:
    """Folder of the configs shipped with the package."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """Short names of the shipped configs (``ov_coco/open-vocab-rcnn_...``), sorted."""
    root = config_root()
    paths = (p.relative_to(root) for p in root.rglob("*.py"))
    return sorted(p.with_suffix("").as_posix() for p in paths if "_base_" not in p.parts)


def find_config(name: str | Path) -> Path:
    """Path of a config.

    Args:
        name: a path, with or without ``.py``; or the name of a shipped config, from any folder: ``ov_coco/NAME``,
            ``configs/ov_coco/NAME.py``, or just ``NAME``.

    Raises:
        UserError: if there is no such config, with the closest names.
    """
    # Not with_suffix: config names contain dots.
    given = Path(name)
    if given.is_file():
        return given
    if (with_ending := Path(f"{given}.py")).is_file():
        return with_ending
    short = given.as_posix().removeprefix("./").removeprefix("configs/").removesuffix(".py")
    if not given.is_absolute() and ".." not in given.parts and (config_root() / f"{short}.py").is_file():
        return config_root() / f"{short}.py"
    names = config_names()
    matches = [n for n in names if n.split("/")[-1] == short]
    if len(matches) == 1:
        return config_root() / f"{matches[0]}.py"
    if matches:
        raise UserError(f"The config name {given} is ambiguous. Choose one of: {', '.join(matches)}.")
    raise UserError(f"No config at {given}. {_advice(given, short, names)}")


def _advice(given: Path, short: str, names: list[str]) -> str:
    if given.parent.is_dir() and (here := [p.name for p in given.parent.glob("*.py")]):
        near = nearest(given.name, here)
        if near:
            return f"Nearest in {given.parent}: {', '.join(near)}."
    # Full names first, then base names, which are easier to remember.
    near = nearest(short, names) or [
        n
        for last in nearest(short.split("/")[-1], [n.split("/")[-1] for n in names])
        for n in names
        if n.endswith(last)
    ]
    return f"Nearest shipped configs: {', '.join(near)}." if near else f"Shipped configs: {', '.join(names)}."
