"""Tiles equal supervision's slicer; batches over images and folders; broken files among thousands are reported."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smartclip_det.apis.detections import Detections
from smartclip_det.apis.inputs import load_image
from smartclip_det.apis.tiles import answer_images, check_tile, tiles_of
from smartclip_det.core.errors import UserError
from tests.apis.rectangles import COLOURS, Rectangles, scene


def by_box(found):
    return sorted((d.name, *map(round, d.box), round(d.score, 4)) for d in found)


class TestTiles:
    @settings(deadline=None, max_examples=60)
    @given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.data())
    def test_they_lie_where_supervision_lays_them(self, width, height, side, data):
        sv = pytest.importorskip("supervision")
        overlap = data.draw(st.integers(0, side - 1))
        theirs = []
        slicer = sv.InferenceSlicer(lambda _: sv.Detections.empty(), slice_wh=side, overlap_wh=overlap)
        theirs = slicer._generate_offset((width, height), slicer.slice_wh, slicer.overlap_wh)
        ours = tiles_of((width, height), side, overlap)
        assert ours.tolist() == theirs.tolist()
        seen = np.zeros((height, width), bool)
        for x1, y1, x2, y2 in ours:
            seen[y1:y2, x1:x2] = True
        assert seen.all()

    @settings(deadline=None, max_examples=15)
    @given(st.integers(0, 1000), st.sampled_from([(64, 20), (100, 0), (90, 60), (500, 40)]), st.integers(1, 4))
    def test_answers_are_supervision_s(self, seed, tile, batch_size):
        sv = pytest.importorskip("supervision")
        image, _ = scene((230, 170), 12, seed)
        detector = Rectangles()
        (ours,) = answer_images(detector, image, tile=tile, batch_size=batch_size)
        slicer = sv.InferenceSlicer(
            lambda piece: detector.detect(np.asarray(piece), tuple(COLOURS)).to_supervision(),
            slice_wh=tile[0],
            overlap_wh=tile[1],
            iou_threshold=0.5,
        )
        theirs = slicer(image)
        as_ours = Detections(theirs.xyxy.reshape(-1, 4), theirs.confidence, theirs.class_id, tuple(COLOURS))
        assert by_box(ours) == by_box(as_ours)

    def test_small_things_far_apart_are_each_found_once(self):
        image, boxes = scene((400, 300), 15, 3)
        (found,) = answer_images(Rectangles(), image, tile=(120, 60))
        whole = {(n, *map(int, b)) for b, n in boxes}
        assert {(d.name, *map(int, d.box)) for d in found} >= whole
        assert found.image.pixels().shape == image.shape

    def test_masks_are_moved_into_the_whole(self):
        class Masked(Rectangles):
            def detect(self, image, names):
                found = super().detect(image, names)
                masks = np.zeros((len(found), *load_image(image).shape[:2]), bool)
                for mask, (x1, y1, x2, y2) in zip(masks, found.boxes.astype(int), strict=True):
                    mask[y1:y2, x1:x2] = True
                return Detections(found.boxes, found.scores, found.labels, found.names, masks=masks)

        image, _ = scene((150, 100), 5, 1)
        (found,) = answer_images(Masked(), image, tile=(80, 45))
        assert found.masks.shape == (len(found), 100, 150)
        for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes.astype(int), strict=True):
            assert mask[y1:y2, x1:x2].all()
            assert mask.sum() == (x2 - x1) * (y2 - y1)

    @pytest.mark.parametrize(
        ("tile", "said"),
        [
            (640, "tile must be .side, overlap."),
            ((640,), "tile must be"),
            ((0, 0), "side of tiles must be an integer"),
            ((64, 64), "from 0 to 63"),
            ((64, -1), "from 0"),
            ((64.0, 3), "side of tiles"),
        ],
    )
    def test_other_tiles_are_refused(self, tile, said):
        with pytest.raises(UserError, match=said):
            check_tile(tile)
        with pytest.raises(UserError, match=said):
            next(answer_images(Rectangles(), np.zeros((9, 9, 3), np.uint8), tile=tile))


class TestBatches:
    def test_answers_come_in_order_with_their_images(self, tmp_path):
        for n in range(5):
            Image.fromarray(scene((60 + n, 50), 2, n)[0]).save(tmp_path / f"{n}.png")
        detector = Rectangles()
        found = list(answer_images(detector, tmp_path, ["blue", "red"], batch_size=2))
        assert detector.batches == [2, 2, 1]
        assert [f.image.size[0] for f in found] == [60, 61, 62, 63, 64]
        assert all(f.names == ("blue", "red") for f in found)

    def test_thousands_of_pictures_of_which_some_are_broken(self, tmp_path):
        """Symlinks to one file, because the test is about the loop's memory and counts, not the disk."""
        good, bad = tmp_path / "good.png", tmp_path / "bad.png"
        Image.new("RGB", (24, 24), COLOURS["red"]).save(good)
        bad.write_bytes(good.read_bytes()[:50])
        paths, told, alive, most = [bad if n % 97 == 0 else good for n in range(3_000)], [], weakref.WeakSet(), 0
        for n, found in enumerate(
            answer_images(Rectangles(), paths, ["red"], batch_size=16, on_bad=lambda p, e: told.append(e))
        ):
            alive.add(found.image)
            if n % 500 == 0:
                gc.collect()
                most = max(most, len(alive))
        assert n + 1 + len(told) == 3_000
        assert len(told) == 31
        assert most <= 20
