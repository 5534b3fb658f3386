"""Old import paths work for one version, and name the new ones."""

from __future__ import annotations

import importlib.util
import sys

import pytest

import smartclip_det.evaluation as old


def test_old_names_are_the_new_ones():
    with pytest.warns(DeprecationWarning, match=r"formats.captions.read_caption_records now"):
        from smartclip_det.evaluation.caption_files import read_caption_records
    from smartclip_det.formats import captions

    assert read_caption_records is captions.read_caption_records
    with pytest.warns(DeprecationWarning, match="now"):
        from smartclip_det.evaluation.detection_files import GroundTruth, read_json
    assert (GroundTruth.__module__, read_json.__module__) == (
        "smartclip_det.formats.annotations",
        "smartclip_det.formats.json_files",
    )
    with pytest.raises(ImportError, match="no_such"):
        from smartclip_det.evaluation.coco import no_such  # noqa: F401


@pytest.mark.parametrize("room", sorted({r for rooms in old._MOVED.values() for r in rooms}))
def test_the_rooms_are_there(room):
    assert importlib.util.find_spec(f"smartclip_det.{room}") is not None


@pytest.mark.parametrize(("old", "new"), [("parts", "register_detection"), ("alignment_parts", "register_alignment")])
def test_saved_configs_import_what_registers_under_its_old_name(old, new):
    sys.modules.pop(f"smartclip_det.{old}", None)
    with pytest.warns(FutureWarning, match=f"smartclip_det.{old} is now smartclip_det.{new}"):
        module = importlib.import_module(f"smartclip_det.{old}")
    assert vars(importlib.import_module(f"smartclip_det.{new}"))["__all__"][0] in vars(module)
