"""The package declares what it imports."""

from __future__ import annotations

import ast
import configparser
import re
import sys
import tomllib

import pytest

from smartclip_det.utils import compat
from smartclip_det.version import __version__
from tests.conftest import REPO

#: Import names that differ from their distributions.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "open_clip": "open-clip-torch",
    "mmcv": "mmcv-lite",
    "faster_coco_eval": "faster-coco-eval",
    "huggingface_hub": "huggingface-hub",
    "fontTools": "fonttools",
    "cv2": "opencv-python",
}
#: Installed and used by MMEngine; setup.cfg explains why it is not required.
BROUGHT = {"opencv-python"}


def named(lines):
    return {re.split(r"[<>=!~ ;\[]", line)[0] for line in lines.split("\n") if line}


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(REPO / "setup.cfg", encoding="utf-8")
    return parser


def test_every_import_is_asked_for_in_the_base_or_in_an_extra(setup_cfg):
    asked = named(setup_cfg["options"]["install_requires"]) | BROUGHT
    for extra in setup_cfg["options.extras_require"].values():
        asked |= named(extra)
    for path in (REPO / "smartclip_det").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            for top in {n.split(".")[0] for n in names} - {"smartclip_det", *sys.stdlib_module_names}:
                assert DISTRIBUTIONS.get(top, top) in asked, f"{path} imports {top}"


def test_what_was_tested_together_fits_what_is_asked_for(setup_cfg):
    uv = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]
    pinned = dict(line.split("==") for line in uv["constraint-dependencies"])
    for name in named(setup_cfg["options"]["install_requires"]) - {"lvis"}:
        assert name in pinned, f"{name} has no tested version in pyproject.toml"
    for name, version in compat.TESTED.items():
        if name in pinned:
            assert pinned[name] == version
    extras = setup_cfg["options.extras_require"]
    assert f"mmdet=={compat.TESTED['mmdet']}" in extras["det"]
    assert f"mmcv-lite=={compat.TESTED['mmcv-lite']}" in extras["det"]


def test_every_data_file_of_the_package_is_installed(setup_cfg):
    """Setuptools matches the patterns from the nearest package folder; what none matches is missing in a wheel."""
    patterns = setup_cfg["options.package_data"]["*"].split(", ")
    package = REPO / "smartclip_det"
    owners = [p.parent for p in package.rglob("__init__.py")]
    installed = {path for owner in owners for pattern in patterns for path in owner.glob(pattern)}
    kept = [p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert package / "visualization/templates/report.css" in kept
    assert [str(p.relative_to(REPO)) for p in kept if p not in installed] == []


def test_version_is_one_in_code_citation_and_changelog():
    citation = (REPO / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", changelog, flags=re.M)
    assert len(sections) == changelog.count("\n## "), "each section is a version with its date, or Unreleased"
    assert [n for n, date in sections if not date] in ([], ["Unreleased"])
    released = [(date, name) for name, date in sections if date]
    assert released == sorted(released, reverse=True)
    date, newest = released[0]
    assert newest == __version__
    assert f"\nversion: {newest}\ndate-released: {date}\n" in citation
