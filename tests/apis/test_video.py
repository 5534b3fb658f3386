"""Videos: every n-th frame, whole or trimmed, rotated; drawing boxes into a video; tracking."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from smartclip_det.apis.detections import Detections
from smartclip_det.apis.inputs import load_image, read_images
from smartclip_det.apis.tiles import answer_images
from smartclip_det.core.errors import UserError
from tests.apis.rectangles import COLOURS, Rectangles

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'smartclip_det[video]'")
from smartclip_det.apis.video import Tracker, VideoWriter, answer_video, read_frames  # noqa: E402

FRAMES, SIZE = 30, (96, 64)


def frame(n):
    """A red square moves right and a blue one left, in separate rows; a green one appears late."""
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    image[6:26, 2 * n : 2 * n + 20] = COLOURS["red"]
    image[36:56, 70 - 2 * n : 90 - 2 * n if n < 35 else None] = COLOURS["blue"]
    if n >= 20:
        image[30:34, 80:96] = COLOURS["green"]
    return image


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with VideoWriter(path, 10) as writer:
        for n in range(FRAMES):
            writer.write(Image.fromarray(frame(n)))
    return path


def test_every_third_frame_and_each_read_again_by_itself(clip):
    found = list(read_frames(clip, every=3))
    assert [f.number for f, _ in found] == list(range(0, FRAMES, 3))
    assert [round(f.seconds, 2) for f, _ in found] == [round(n / 10, 2) for n in range(0, FRAMES, 3)]
    for picture, pixels in found[::4]:
        assert np.abs(pixels.astype(int) - frame(picture.number)).mean() < 12
        assert np.array_equal(picture.pixels(), pixels)
    assert [p.name for p, _ in read_images([clip], every=15)] == [f"{clip}#0", f"{clip}#15"]
    with pytest.raises(UserError, match="Use detect_images for videos"):
        load_image(clip)


def test_a_written_video_has_the_boxes_and_the_pace(clip, tmp_path):
    found = list(
        answer_video(Rectangles(near=90), clip, ["red", "blue"], every=2, out=tmp_path / "out.mp4", threshold=0.3)
    )
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
        assert stream.average_rate == Fraction(5)
    assert len(frames) == len(found) == FRAMES // 2
    assert np.abs(frames[0].astype(int) - np.asarray(found[0].plot(min_side=0))).mean() < 12
    assert np.abs(frames[0].astype(int) - frame(0)).mean() > 12
    assert not list(tmp_path.glob(".*"))


def test_objects_keep_their_numbers_and_each_name_has_its_own(clip):
    found = list(answer_video(Rectangles(near=90), clip, list(COLOURS), track=True, threshold=0.3))
    numbers = {name: {d.track for f in found for d in f if d.name == name} for name in ("red", "blue")}
    # ByteTrack follows an object from its second frame on.
    assert numbers == {"red": {0, 1}, "blue": {0, 2}}
    assert [d.track for d in found[0]] == [0, 0]
    assert {d.track for f in found[21:] for d in f} == {1, 2, 3}
    plain = found[5].plot()
    found[5].tracks = None
    assert not np.array_equal(found[5].plot(), plain)


def test_an_object_does_not_take_over_the_number_of_one_of_another_name():
    tracker, numbers = Tracker(10, 0.5), []
    for n in range(12):
        at_one_place = Detections([[10, 10, 30, 30]], np.array([0.9]), np.array([n // 6]), ("red", "blue"))
        numbers.append(int(tracker.follow(at_one_place).tracks[0]))
    assert numbers == [0, 1, 1, 1, 1, 1, 0, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("ending", [".mkv", ".ts"])
def test_a_video_that_ends_in_the_middle_gives_what_it_has_and_says_so(ending, tmp_path, capsys):
    path = tmp_path / f"whole{ending}"
    g = np.random.default_rng(0)
    with VideoWriter(path, 10) as writer:
        for _ in range(60):
            writer.write(Image.fromarray(g.integers(0, 255, (48, 48, 3), dtype=np.uint8)))
    list(read_frames(path))
    assert "is truncated" not in capsys.readouterr().out
    cut = tmp_path / f"cut{ending}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 5])
    found = list(answer_images(Rectangles(), cut, ["red"]))
    assert 5 < len(found) < 40
    if ending == ".mkv":
        told = capsys.readouterr().out
        assert "is truncated after" in told
        assert "of 6.0 s" in told


def test_what_is_no_video_is_told(clip, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:900])
    text = tmp_path / "text.mp4"
    text.write_text("no video " * 100)
    empty = tmp_path / "empty.mkv"
    empty.write_bytes(b"")
    for path in (cut, text, empty):
        with pytest.raises(UserError, match="cannot be read"):
            list(read_frames(path))
    bad = []
    assert len(list(read_images([cut, clip], every=20, on_bad=lambda p, e: bad.append(p.name)))) == 2
    assert bad == [str(cut)]
    with pytest.raises(UserError, match="No video at"):
        list(read_frames(tmp_path / "none.mp4"))
    with pytest.raises(UserError, match="would overwrite"):
        next(answer_video(Rectangles(), clip, out=clip))
    with pytest.raises(UserError, match="a video suffix"):
        next(answer_video(Rectangles(), clip, out=tmp_path / "out.odd"))


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="has no video stream, only audio"):
        list(read_frames(tmp_path / "a.mkv"))


def test_an_error_leaves_no_half_video(clip, tmp_path):
    class Failing(Rectangles):
        def detect(self, image, names):
            if len(self.batches) > 3:
                raise UserError("enough")
            return super().detect(image, names)

    with pytest.raises(UserError, match="enough"):
        list(answer_video(Failing(), clip, out=tmp_path / "out.mp4"))
    assert list(tmp_path.iterdir()) == []


def test_telephones_films_are_upright(clip, tmp_path):
    """Set the display matrix of an upright recording in a copy of the stream."""
    turned = tmp_path / "turned.mp4"
    with av.open(str(clip)) as source, av.open(str(turned), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    content = bytearray(turned.read_bytes())
    # tkhd has the matrix of nine 32-bit numbers 40 bytes after its flags: a quarter turn clockwise.
    at = content.index(b"tkhd") + 4 + 40
    turn = [0, 1 << 16, 0, -(1 << 16), 0, 0, SIZE[1] << 16, 0, 1 << 30]
    content[at : at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in turn)
    turned.write_bytes(content)
    _, pixels = next(read_frames(turned))
    assert pixels.shape == (SIZE[0], SIZE[1], 3)
    assert np.abs(pixels.astype(int) - np.rot90(frame(0), -1)).mean() < 12
