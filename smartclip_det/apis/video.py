"""Videos: their frames, the same with boxes drawn, and objects followed through them. Reading and writing by PyAV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from smartclip_det.apis.detections import Detections
from smartclip_det.apis.inputs import Picture, check_count, check_threshold
from smartclip_det.apis.tiles import Detector, answer_images
from smartclip_det.core.errors import UserError
from smartclip_det.utils.notes import note
from smartclip_det.utils.optional import optional

#: Seconds of a video that may lack at its end before that is told; the length that files tell is not exact.
_SLACK = 1.0
#: Encoders, best first: not every build of FFmpeg has all.
_CODECS = ("libx264", "libopenh264", "mpeg4")


@dataclass(frozen=True, eq=False)
class Frame(Picture):
    """A frame, read again from the video when its pixels are asked for.

    Attributes:
        number: of the frame, from 0.
        seconds: from the start of the video.
        time_stamp: in the stream's own units.
    """

    number: int = 0
    seconds: float = 0.0
    time_stamp: int | None = None

    def pixels(self) -> np.ndarray:
        """``[H, W, 3]`` uint8 RGB, turned as the video says.

        Raises:
            UserError: where the video is gone or has changed.
        """
        with _opened(self.source) as container:
            stream = container.streams.video[0]
            if self.time_stamp is not None:
                container.seek(self.time_stamp, stream=stream)
            for n, frame in enumerate(_decoded(container, stream)):
                if frame.pts == self.time_stamp if self.time_stamp is not None else n == self.number:
                    return _pixels(frame)
        raise UserError(f"{self.source} has no frame {self.number} any more: has the file changed?")


def read_frames(path: str | Path, *, every: int = 1) -> Iterator[tuple[Frame, np.ndarray]]:
    """Frames of a video, one held at a time; a video that ends in the middle gives those before, and that is told.

    Args:
        path: of the video.
        every: the first of so many frames.

    Raises:
        UserError: for a file that is no video, or one without a frame that can be decoded.
    """
    check_count("every", every)
    count, last = 0, 0.0
    with _opened(path) as container:
        stream = container.streams.video[0]
        try:
            for number, frame in enumerate(_decoded(container, stream)):
                count, last = number + 1, float(frame.time or 0.0)
                if number % every == 0:
                    name = f"{path}#{number}"
                    yield Frame(path, name, number, last, frame.pts), _pixels(frame)
            fault = ""
        except optional("av", "video").error.FFmpegError as error:
            fault = str(error).partition("; ")[0]
        length = _seconds(container, stream)
        if not count:
            raise UserError(f"{path} has no frame that can be decoded ({fault or 'it is empty'}).")
        if fault or (length is not None and length - last > _SLACK + 1 / _rate(stream)):
            told = f" of the {length:.1f} s that it should have" if length else ""
            note(
                f"{path} ends in the middle, after {count} frames, {last:.1f} s{told}"
                + (f" ({fault})." if fault else ".")
            )


def _opened(path: str | Path) -> Any:
    """A container with pictures in it."""
    av = optional("av", "video")
    if not Path(path).is_file():
        raise UserError(f"No video at {path}.")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        told = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(
            f"The video {path} cannot be read ({told}): it is none, or it was cut before the index at its end was "
            "written."
        ) from error
    if not container.streams.video:
        kinds = sorted({s.type for s in container.streams})
        container.close()
        raise UserError(f"{path} has no pictures, only {', '.join(kinds) or 'nothing'}.")
    return container


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    stream.thread_type = "AUTO"
    return iter(container.decode(stream))


def _pixels(frame: Any) -> np.ndarray:
    """RGB, turned by the display matrix, as telephones write it."""
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))
    return np.ascontiguousarray(turned)


def _rate(stream: Any) -> Fraction:
    """Frames in a second; 25 where the file does not tell."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _seconds(container: Any, stream: Any) -> float | None:
    """The length that the file tells."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


class VideoWriter:
    """A video file, written frame by frame; it appears under its name when it is whole."""

    def __init__(self, path: str | Path, rate: Fraction | float) -> None:
        """Build; the size is that of the first frame.

        Args:
            path: of the video; its ending chooses the container.
            rate: frames in a second.

        Raises:
            UserError: for an ending that is no video's.
        """
        self.path = Path(path)
        self._part = self.path.with_name(f".{self.path.stem}.part{self.path.suffix}")
        self._rate = Fraction(rate).limit_denominator(100_000)
        self._container: Any = None
        self._stream: Any = None
        self.count = 0

    def __enter__(self) -> VideoWriter:
        """Open."""
        av = optional("av", "video")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._container = av.open(str(self._part), "w")
        except (ValueError, av.error.FFmpegError) as error:
            raise UserError(f"{self.path} has no ending of a video, such as .mp4 ({error}).") from error
        return self

    def write(self, picture: Image.Image) -> None:
        """Append a frame; one of another size is fitted to that of the first."""
        av = optional("av", "video")
        if self._stream is None:
            codec = next((c for c in _CODECS if c in av.codecs_available), _CODECS[-1])
            self._stream = self._container.add_stream(codec, rate=self._rate)
            # Colours are stored for two by two pixels.
            self._stream.width, self._stream.height = (v + v % 2 for v in picture.size)
            self._stream.pix_fmt = "yuv420p"
        size = (self._stream.width, self._stream.height)
        if picture.size != size:
            array = np.asarray(picture)
            pads = [(0, size[1] - picture.height), (0, size[0] - picture.width), (0, 0)]
            fits = all(0 <= p[1] <= 1 for p in pads)
            picture = Image.fromarray(np.pad(array, pads, mode="edge")) if fits else picture.resize(size)
        self._container.mux(self._stream.encode(av.VideoFrame.from_image(picture)))
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish; after an error, or without a frame, no file is left."""
        whole = kind is None and self._stream is not None
        if whole:
            self._container.mux(self._stream.encode())
        self._container.close()
        if whole:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)


class Tracker:
    """Numbers objects through a video, by ByteTrack of ``trackers`` (supervision's trackers are there now).

    ByteTrack knows boxes alone: each name has one of its own, so that no object takes over the number of one of another
    name behind it. Numbers are unique in the video, from 1, in the order in which objects come.
    """

    def __init__(self, rate: float, threshold: float) -> None:
        """Build.

        Args:
            rate: answered frames in a second.
            threshold: lowest score that starts a track; detections below it continue one.
        """
        self._new = partial(
            optional("trackers", "video").ByteTrackTracker,
            frame_rate=float(rate),
            minimum_consecutive_frames=1,
            track_activation_threshold=check_threshold(threshold),
            high_conf_det_threshold=threshold,
        )
        self._trackers: dict[str, Any] = {}
        self._numbers: dict[tuple[str, int], int] = {}

    def follow(self, found: Detections) -> Detections:
        """The detections of the next frame with their ``tracks``; 0 where an object is not followed yet."""
        tracks = np.zeros(len(found), dtype=np.int64)
        for name in dict.fromkeys([*self._trackers, *found.label_names]):
            if name not in self._trackers:
                self._trackers[name] = self._new()
            rows = np.flatnonzero([n == name for n in found.label_names])
            given = found[rows].to_supervision()
            given.data["row"] = rows
            followed = self._trackers[name].update(given)
            for row, own in zip(followed.data.get("row", ()), followed.tracker_id, strict=False):
                if own >= 0:
                    tracks[row] = self._numbers.setdefault((name, int(own)), len(self._numbers) + 1)
        return replace(found, tracks=tracks)


def answer_video(
    detector: Detector,
    path: str | Path,
    texts: Sequence[str] | None = None,
    *,
    every: int = 1,
    out: str | Path | None = None,
    track: bool = False,
    threshold: float = 0.5,
    limit: int | None = None,
    **options: Any,
) -> Iterator[Detections]:
    """An answer for every n-th frame of a video; each has the frame as ``image``.

    Args:
        detector: any predictor with ``detect_images``.
        path: of the video.
        texts: phrases; None for the vocabulary in force.
        every: the first of so many frames.
        out: a video of the answered frames with their boxes, as fast as the given one; it is whole when the last
            answer was taken.
        track: number objects through the video.
        threshold: lowest score.
        limit: boxes drawn in a frame at most, the best; None: all.
        options: of :func:`~smartclip_det.apis.tiles.answer_images`: ``batch_size``, ``tile``, ``max_detections``.

    Raises:
        UserError: as :func:`read_frames` does, and where ``out`` is the video itself.
    """
    if out is not None and Path(out).resolve() == Path(path).resolve():
        raise UserError(f"The video with boxes would overwrite {path}. Give another name.")
    with _opened(path) as container:
        rate = _rate(container.streams.video[0]) / check_count("every", every)
    tracker = Tracker(float(rate), threshold) if track else None
    # ByteTrack continues tracks by detections that alone would not be believed.
    least = threshold / 4 if track else threshold
    answers = answer_images(detector, path, texts, every=every, threshold=least, **options)
    followed = answers if tracker is None else (_confirmed(tracker.follow(a), threshold) for a in answers)
    if out is None:
        yield from followed
        return
    with VideoWriter(out, rate) as writer:
        for found in followed:
            writer.write(found.plot(limit=limit))
            yield found


def _confirmed(found: Detections, threshold: float) -> Detections:
    """Those that are followed, or score enough."""
    return found[(found.tracks > 0) | (found.scores >= threshold)]  # type: ignore[operator]
