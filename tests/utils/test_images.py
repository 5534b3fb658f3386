"""Images of every kind: extreme aspect ratios, reduced decoding, modes, damaged files."""

from __future__ import annotations

import io
import resource
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.captions import CaptionDataset
from smartclip_det.datasets.image_cache import ImageCache
from smartclip_det.utils import images
from smartclip_det.utils.images import (
    FITS,
    REDUCED_DISTANCE,
    SquareImages,
    as_rgb,
    decode_rgb,
    fit_square,
    open_rgb,
    read_square,
)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image, form="PNG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 700), st.booleans(), st.sampled_from([7, 16, 33]))
def test_cutting_while_resizing_gives_what_cutting_after_it_gives(short, long, upright, side):
    # Mid-range values: the order of Pillow's two passes matters where a bicubic overshoot is clipped in between.
    image = noise(*((short, long) if upright else (long, short))).point(lambda v: 80 + v * 96 // 255)
    width, height = images._resized(image.size, side, "crop")
    left, top = round((width - side) / 2), round((height - side) / 2)
    expected = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    difference = np.abs(np.asarray(fit_square(image, side), int) - np.asarray(expected, int))
    # Exact for aspect ratios up to 16; above, up to the rounding of two passes.
    assert difference.max() <= (2 if max(width, height) > 16 * side else 0)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 3_000_000)])
@pytest.mark.parametrize("fit", FITS)
def test_a_thread_of_pixels_takes_no_gigabytes(size, fit, monkeypatch):
    made = []
    resize = Image.Image.resize

    def watched(self, to, *args, **options):
        made.append(to[0] * max(to[1], 1 if options.get("box") else min(self.size[1], 10**9)))
        return resize(self, to, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    square = fit_square(Image.new("RGB", size, (200, 10, 30)), 64, fit)
    assert square.size == (64, 64)
    assert square.getpixel((0, 0)) == (200, 10, 30)
    # Pillow's first pass has the new width and all old rows.
    assert max(made) < 8_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_reduced_decoding_stays_within_its_distance(shared):
    files = sorted((shared / "coco_mini_train/images").glob("*.jpg"))[:16]
    # By a quarter with a large margin, and by a half with a small one.
    for fit, side in [*((fit, 40) for fit in FITS), ("crop", 224)]:
        found = []
        for path in files:
            whole, part = (np.asarray(read_square(path, path.name, side, fit, exact=e), int) for e in (True, False))
            assert np.array_equal(whole, np.asarray(fit_square(open_rgb(path), side, fit)))
            found.append(np.abs(whole - part).mean())
        assert 0 < np.mean(found) < REDUCED_DISTANCE[0]
        assert max(found) < REDUCED_DISTANCE[1]
    # If half the size would be too small, nothing is reduced.
    for fit in FITS:
        whole, part = (np.asarray(read_square(files[0], "x", 400, fit, exact=e), int) for e in (True, False))
        # A square cropped before resizing may differ by rounding.
        assert np.abs(whole - part).max() <= 2


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_reduced_pictures_are_turned_and_laid_out_as_whole_ones(orientation):
    x, y = np.meshgrid(np.linspace(0, 255, 641), np.linspace(0, 255, 427))
    image = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(image, "JPEG", exif=exif, quality=95)
    for fit in FITS:
        whole, part = (np.asarray(read_square(content, "x", 32, fit, exact=e), int) for e in (True, False))
        assert np.abs(whole - part).max() <= 6
        assert np.array_equal(whole, np.asarray(fit_square(decode_rgb(content, "x"), 32, fit)))


def test_training_reduces_and_tests_do_not(tmp_path):
    from torch import equal

    (tmp_path / "1.jpg").write_bytes(saved(noise(400, 400), "JPEG"))
    (tmp_path / "1.txt").write_text("noise")
    sets = {
        name: CaptionDataset(str(tmp_path), **{"images": {"size": 32}, **o})
        for name, o in {
            "train": {},
            "exact": {"images": {"size": 32, "exact_decode": True}},
            "test": {"test_mode": True},
        }.items()
    }
    assert equal(sets["exact"].image(0), sets["test"].image(0))
    assert equal(sets["test"].image(0), images.pixels(fit_square(open_rgb(tmp_path / "1.jpg"), 32)))
    assert not equal(sets["train"].image(0), sets["test"].image(0))
    reduced, whole = tmp_path / "reduced", tmp_path / "whole"
    ImageCache(reduced, ["1.jpg"], 32, "crop", create=True, exact=False)
    ImageCache(whole, ["1.jpg"], 32, "crop", create=True)
    assert not ImageCache(reduced, ["1.jpg"], 32, "crop", exact=False).exact
    assert ImageCache(whole, ["1.jpg"], 32, "crop", exact=False).exact
    with pytest.raises(UserError, match="decode reduced, for training"):
        CaptionDataset(str(tmp_path), images={"size": 32, "cache": str(reduced)}, test_mode=True)


def test_modes_have_the_colours_that_they_mean():
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for form in ("PNG", "TIFF"):
        assert np.array_equal(np.asarray(decode_rgb(saved(Image.fromarray(grey), form), "x"))[..., 0], eight)
    wide = Image.fromarray(eight.astype(np.int32))
    assert np.array_equal(np.asarray(as_rgb(wide))[..., 0], eight)
    assert np.array_equal(np.asarray(as_rgb(Image.fromarray(grey.astype(np.int32))))[..., 1], eight)
    assert np.array_equal(np.asarray(as_rgb(Image.fromarray(eight.astype(np.float32))))[..., 2], eight)
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    for mode in ("CMYK", "YCbCr", "HSV", "RGBA", "P", "PA", "RGBX"):
        assert as_rgb(red.convert("P").convert("PA") if mode == "PA" else red.convert(mode)).getpixel(
            (3, 3)
        ) == pytest.approx((255, 0, 0), abs=2)
    assert decode_rgb(saved(red.convert("CMYK"), "JPEG"), "x").getpixel((3, 3)) == pytest.approx((255, 0, 0), abs=3)
    assert as_rgb(Image.new("1", (4, 4), 1)).getpixel((0, 0)) == (255, 255, 255)
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode_rgb(saved(palette, transparency=bytes([0] * 4)), "x")
    assert found.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)), "floating-point"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "floating-point"),
        (Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "exceed 16 bits"),
        (Image.fromarray(np.full((4, 4), -3, np.int32)), "exceed 16 bits"),
    ],
)
def test_pixels_without_a_meaning_as_colours_are_refused(image, message):
    with pytest.raises(UserError, match=message):
        as_rgb(image)


def test_damaged_files_and_bombs_are_one_line(tmp_path, monkeypatch):
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        content = saved(noise(40, 40), form)
        for cut in (0, 3, len(content) // 3, len(content) // 2):
            with pytest.raises(UserError, match="x.img cannot be read") as told:
                decode_rgb(content[:cut], "x.img")
            assert "\n" not in str(told.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="decompression bomb"):
        decode_rgb(saved(noise(40, 40)), "x.img")
    with pytest.raises(UserError, match="No image at"):
        read_square(tmp_path / "absent.jpg", "absent.jpg", 8, exact=False)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_flipped_bytes_give_a_picture_or_one_error(form, flips):
    content = bytearray(saved(noise(24, 20), form))
    for place, value in flips:
        content[int(place * (len(content) - 1))] = value
    try:
        size = read_square(bytes(content), "x", 8, exact=False).size
    except UserError as error:
        size, told = None, str(error)
    assert size == (8, 8) if size else "cannot be read" in told


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_in_a_worker_is_its_own_error(tmp_path, workers):
    (tmp_path / "a.png").write_bytes(saved(noise(9, 9)))
    (tmp_path / "b.png").write_bytes(b"no picture")
    squares = SquareImages([lambda n=n: open_rgb(tmp_path / n) for n in ("a.png", "a.png", "b.png")], 8)
    found = squares.batches(2, workers)
    assert next(found).shape == (2, 3, 8, 8)
    with pytest.raises(UserError) as told:
        next(found)
    assert str(told.value).startswith(f"The image {tmp_path}/b.png cannot be read")
    assert "Traceback" not in str(told.value)
