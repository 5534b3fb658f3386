"""Template sets, and the texts of class names."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.core.prompts import article, words
from smartclip_det.models.template_sets import class_prompts, clean_name, templates


def test_template_sets_have_their_published_sizes(shared):
    published = json.loads((shared / "category_metadata/imagenet_templates.json").read_text())
    assert list(templates("clip_80")) == published
    # Hash of the texts that the published scores were computed with, in their order.
    digest = hashlib.sha256("\n".join(templates("clip_80")).encode()).hexdigest()
    assert digest == "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af"
    assert len(templates("vild_63")) == 63
    assert len(set(templates("vild_63"))) == 63
    assert templates("photo") == ("a photo of a {}.",)


def test_vild_convention():
    prompts = class_prompts(["Air_Conditioner/Unit."], "vild_63")[0]
    assert prompts[0] == "There is an air conditioner or unit in the scene."
    assert prompts[2] == "This is a photo of an air conditioner or unit in the scene."
    assert prompts[51] == "This is a plastic air conditioner or unit."
    assert "itap of my air conditioner or unit." in prompts
    assert "This is the plastic air conditioner or unit." in prompts
    assert clean_name("bow_(decorative_ribbons)") == "bow (decorative ribbons)"
    assert article("Umbrella") == "an"


def test_prompts_are_checked():
    assert class_prompts(["cat"], ["{} here", "no {}"]) == [["cat here", "no cat"]]
    for bad in ([], ["cat", " "]):
        with pytest.raises(UserError, match="empty"):
            class_prompts(bad)
    with pytest.raises(UserError, match=r"no '\{\}'"):
        class_prompts(["cat"], ["a photo"])
    with pytest.raises(UserError, match="Nearest: vild_63"):
        class_prompts(["cat"], "vild63")


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=1).filter(lambda s: s.strip()))
def test_filling_never_loses_the_name(name):
    for prompt in class_prompts([name], "clip_80")[0][:5]:
        assert words(name) in prompt


def test_names_with_marks_are_words_in_every_template_set():
    said = {
        "aerosol_can": "aerosol can",
        "bow_(decorative_ribbons)": "bow (decorative ribbons)",
        "bottle/cup": "bottle or cup",
        "T-shirt": "T-shirt",
        "w/ hat": "w/ hat",
        "1/2 pizza": "1/2 pizza",
        "_": "_",
        "__init__": "init",
    }
    for name, prompt in said.items():
        assert words(name) == words(words(name)) == prompt
        for templates_of in ("none", "photo", ["{} here"]):
            assert prompt in class_prompts([name], templates_of)[0][0]
    assert class_prompts(["aerosol_can"], ["{article} {}"]) == [["an aerosol can"]]
