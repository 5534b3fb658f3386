from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.visualization import (
    colour_of,
    draw_boxes,
    draw_heatmap,
    draw_mask_strip,
    grounding_panel,
    lettering,
    sheet,
)


def test_colour_follows_the_name_and_boxes_are_where_they_should_be():
    image = Image.new("L", (200, 120), 255)
    out = draw_boxes(image, [[20, 40, 100, 100], [120, 60, 180, 110]], ["dog", "cat"], ["cat", "dog"], [0.5, 0.25])
    assert out.mode == "RGB"
    assert out.getpixel((20, 70)) == colour_of(1)
    assert out.getpixel((120, 90)) == colour_of(0)
    assert out.getpixel((60, 70)) == (255, 255, 255)
    assert image.getpixel((20, 70)) == 255


@pytest.mark.parametrize("box", [[0, 0, 30, 20], [170, 100, 199, 119], [-50, -50, 400, 400], [190, 0, 199, 8]])
def test_labels_never_leave_the_canvas(box):
    out = np.asarray(
        draw_boxes(Image.new("RGB", (200, 120), "white"), [box], ["a fairly long phrase"], ["a fairly long phrase"])
    )
    colour = np.array(colour_of(0))
    filled = (out == colour).all(-1)
    # The label is a filled block at least ten pixels high, somewhere inside.
    rows = filled.sum(1)
    assert (rows > 60).sum() >= 10


def test_a_box_outside_draws_nothing_and_counts_must_fit():
    blank = Image.new("RGB", (50, 50), "white")
    out = draw_boxes(blank, [[60, 60, 80, 80]], ["a"], ["a"])
    assert np.asarray(out).min() == 255
    with pytest.raises(UserError, match="2 boxes need the same number of labels"):
        draw_boxes(blank, [[0, 0, 1, 1]] * 2, ["a"], ["a"])


def test_heatmap_goes_from_blue_to_red_and_survives_a_flat_map():
    image = Image.new("RGB", (80, 40), "gray")
    out = np.asarray(draw_heatmap(image, np.array([[0.0, 1.0]]), alpha=1.0)).astype(int)
    assert out.shape == (40, 80, 3)
    assert out[20, 2, 2] > out[20, 2, 0] or out[20, 2].sum() < 200
    assert out[20, -3, 0] > out[20, -3, 2]
    assert np.isfinite(np.asarray(draw_heatmap(image, np.ones((3, 3))))).all()


def test_mask_strip_shows_share_and_pattern():
    masks = np.zeros((2, 64))
    masks[0, :32] = 1
    strip = np.asarray(draw_mask_strip(masks, ["half", "none at all " * 5]))
    assert strip[12, 200 + 10, 0] < 60
    assert strip[12, 200 + 100, 0] == 255


def test_a_grounding_panel_has_boxes_bars_tree_and_maps():
    image = Image.new("RGB", (160, 80), (255, 255, 255))
    boxes, scores = [[10, 10, 60, 60], [80, 20, 150, 70]], [0.8, 0.4]
    maps = {"the dog": np.eye(4), "a bench": np.ones((2, 4))}
    panel = grounding_panel(
        image,
        "the dog left of a bench",
        boxes,
        scores,
        targets=[[20, 10, 70, 60]],
        outline=["the dog", "  left:", "    a bench"],
        maps=maps,
        title="IoU 0.6",
    )
    pixels = np.asarray(panel)
    bars = [int((pixels == colour_of(n)).all(axis=2).sum(axis=1).max()) for n in range(2)]
    assert 1.8 < bars[0] / bars[1] < 2.2
    assert (pixels == (0, 150, 0)).all(axis=2).any()
    bare = grounding_panel(image, "nothing", [], [])
    assert bare.height < panel.height
    both = sheet([panel, bare, bare], columns=2)
    assert both.size == (panel.width + bare.width, panel.height + bare.height)
    with pytest.raises(UserError, match="same number of scores"):
        grounding_panel(image, "x", boxes, [0.5])
    with pytest.raises(UserError, match="no panels"):
        sheet([])


CHINESE = ("红色的杯子", "左边的小狗")


def picture_of(phrase, names=None):
    image = Image.new("RGB", (320, 240), "white")
    return draw_boxes(image, [[10, 80, 100, 160]], [phrase], names or [phrase]).tobytes()


def test_phrases_in_any_script_do_not_look_the_same(monkeypatch, caplog):
    """With the installed fonts, and if no font has the glyphs."""
    assert picture_of(CHINESE[0]) != picture_of(CHINESE[1])
    lettering._file_for.cache_clear()
    monkeypatch.setattr(lettering, "_files", list)
    labels = lettering.shown_labels(CHINESE)
    lettering._file_for.cache_clear()
    assert [s[:3] for s in labels.values()] == ["#1 ", "#2 "]
    assert "#2 is '左边的小狗'" in caplog.text


def test_a_font_that_has_the_letters_is_found():
    russian = "красная чашка"
    assert lettering.shown_labels([russian]) == {russian: russian}
    drawn = [lettering.font(20, c).getmask(c).getbbox() for c in "кш"]
    assert drawn[0] != drawn[1]


def test_lines_are_joined_and_phrases_that_look_alike_are_numbered():
    long = [f"the very same beginning of a phrase, {end}" for end in ("one", "two")]
    shown = lettering.shown_labels([*long, "a\ncup", "a cup"], 20)
    assert len(set(shown.values())) == 4
    assert all("\n" not in s and len(s) <= 20 for s in shown.values())


def test_labels_of_twenty_thousand_names_are_no_work():
    names = [f"thing {n}" for n in range(20_000)]
    started = time.process_time()
    shown = lettering.shown_labels([*names, "thing  7"])
    assert time.process_time() - started < 5
    assert (shown["thing 8"], shown["thing 7"], shown["thing  7"]) == ("thing 8", "#8 thing 7", "#20001 thing 7")


def test_a_long_phrase_is_cut_to_the_picture_with_its_score():
    text = lettering.fitting("a phrase that is far too long", lettering.font(12), 60)
    assert text.endswith("…")
    assert lettering.font(12).getlength(text) <= 60
    out = np.asarray(
        draw_boxes(Image.new("RGB", (120, 90), "white"), [[5, 40, 60, 80]], ["word " * 40], ["word " * 40], [0.5])
    )
    block = (out == np.array(colour_of(0))).all(-1)
    assert block.sum(axis=1).max() >= 100  # the label is as wide as the image
    assert lettering.fitting("xy", lettering.font(12), 1) == "x…"
