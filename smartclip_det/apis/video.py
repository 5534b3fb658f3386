"""Videos: reading frames, writing frames with drawn boxes, and object tracking. Uses PyAV for reading and writing."""

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

#: Seconds that may be missing at the end before it is reported; the duration in file headers is not exact.
_SLACK = 1.0
#: Encoders in order of preference; not every FFmpeg build has all of them.
_CODECS = ("libx264", "libopenh264", "mpeg4")


@dataclass(frozen=True, eq=False)
class Frame(Picture):
    """A frame; read again from the video when its pixels are requested.

    Attributes:
        number: frame index, from 0.
        seconds: time from the start of the video.
        time_stamp: presentation time stamp in units of the stream's time base.
    """

    number: int = 0
    seconds: float = 0.0
    time_stamp: int | None = None

    def pixels(self) -> np.ndarray:
        """Read ``[H, W, 3]`` uint8 RGB, with the video's rotation applied.

        Raises:
            UserError: if the video is missing or has changed.
        """
        with _opened(self.source) as container:
            stream = container.streams.video[0]
            if self.time_stamp is not None:
                container.seek(self.time_stamp, stream=stream)
            for n, frame in enumerate(_decoded(container, stream)):
                if frame.pts == self.time_stamp if self.time_stamp is not None else n == self.number:
                    return _pixels(frame)
        raise UserError(f"{self.source} no longer has frame {self.number}. Has the file changed?")


def read_frames(path: str | Path, *, every: int = 1) -> Iterator[tuple[Frame, np.ndarray]]:
    """Iterate over the frames of a video, one in memory at a time; a truncated video yields its readable frames.

    Args:
        path: path of the video.
        every: take one of every N frames.

    Raises:
        UserError: for a file that is not a video, or has no decodable frame.
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
            raise UserError(f"{path} has no decodable frame ({fault or 'it is empty'}).")
        if fault or (length is not None and length - last > _SLACK + 1 / _rate(stream)):
            expected = f" of {length:.1f} s" if length else ""
            note(
                f"{path} is truncated after {count} frames, {last:.1f} s{expected}" + (f" ({fault})." if fault else ".")
            )


def _opened(path: str | Path) -> Any:
    """Open a container and check that it has a video stream."""
    av = optional("av", "video")
    if not Path(path).is_file():
        raise UserError(f"No video at {path}.")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(
            f"The video {path} cannot be read ({reason}). It is not a video, or is truncated before its index was "
            "written."
        ) from error
    if not container.streams.video:
        kinds = sorted({s.type for s in container.streams})
        container.close()
        raise UserError(f"{path} has no video stream, only {', '.join(kinds) or 'nothing'}.")
    return container


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    stream.thread_type = "AUTO"
    return iter(container.decode(stream))


def _pixels(frame: Any) -> np.ndarray:
    """Convert to RGB, with the display matrix applied (videos of phones are stored rotated)."""
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))
    return np.ascontiguousarray(turned)


def _rate(stream: Any) -> Fraction:
    """Return frames per second; 25 if unknown."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _seconds(container: Any, stream: Any) -> float | None:
    """Return the duration according to the header, or None."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


class VideoWriter:
    """Write a video frame by frame; the file gets its final name when it is complete."""

    def __init__(self, path: str | Path, rate: Fraction | float) -> None:
        """Initialise the writer; the frame size is that of the first frame.

        Args:
            path: output path; its suffix selects the container format.
            rate: frames per second.

        Raises:
            UserError: for a suffix that is not a video format.
        """
        self.path = Path(path)
        self._part = self.path.with_name(f".{self.path.stem}.part{self.path.suffix}")
        self._rate = Fraction(rate).limit_denominator(100_000)
        self._container: Any = None
        self._stream: Any = None
        self.count = 0

    def __enter__(self) -> VideoWriter:
        """Open the container."""
        av = optional("av", "video")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._container = av.open(str(self._part), "w")
        except (ValueError, av.error.FFmpegError) as error:
            raise UserError(f"{self.path} does not have a video suffix such as .mp4 ({error}).") from error
        return self

    def write(self, picture: Image.Image) -> None:
        """Append a frame; frames of other sizes are fitted to the size of the first."""
        av = optional("av", "video")
        if self._stream is None:
            codec = next((c for c in _CODECS if c in av.codecs_available), _CODECS[-1])
            self._stream = self._container.add_stream(codec, rate=self._rate)
            # yuv420p subsamples chroma by 2, so sides must be even.
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
        """Finish the file; after an error, or without frames, no file is left."""
        complete = kind is None and self._stream is not None
        if complete:
            self._container.mux(self._stream.encode())
        self._container.close()
        if complete:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)


class Tracker:
    """Track objects through a video with ByteTrack of the ``trackers`` package (which replaced supervision's trackers).

    ByteTrack uses boxes only, so each name has its own tracker: an object cannot take over the id of an object with
    another name. Track ids are unique in the video, from 1, in order of appearance.
    """

    def __init__(self, rate: float, threshold: float) -> None:
        """Initialise the tracker.

        Args:
            rate: processed frames per second.
            threshold: minimum score to start a track; detections below it can only continue one.
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

    def follow(self, detections: Detections) -> Detections:
        """Add ``tracks`` to the detections of the next frame; 0 for objects that are not tracked yet."""
        tracks = np.zeros(len(detections), dtype=np.int64)
        for name in dict.fromkeys([*self._trackers, *detections.label_names]):
            if name not in self._trackers:
                self._trackers[name] = self._new()
            rows = np.flatnonzero([n == name for n in detections.label_names])
            given = detections[rows].to_supervision()
            given.data["row"] = rows
            tracked = self._trackers[name].update(given)
            for row, own in zip(tracked.data.get("row", ()), tracked.tracker_id, strict=False):
                if own >= 0:
                    tracks[row] = self._numbers.setdefault((name, int(own)), len(self._numbers) + 1)
        return replace(detections, tracks=tracks)


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
    """Yield the detections of every n-th frame of a video; each has the frame as ``image``.

    Args:
        detector: any predictor with ``detect_images``.
        path: path of the video.
        texts: phrases; None for the current vocabulary.
        every: take one of every N frames.
        out: output video of the processed frames with boxes, at the original speed; complete once the last frame has
            been consumed.
        track: track objects through the video.
        threshold: minimum score.
        limit: maximum number of boxes drawn per frame, best first; None: all.
        options: options of :func:`~smartclip_det.apis.tiles.answer_images`: ``batch_size``, ``tile``,
            ``max_detections``.

    Raises:
        UserError: as :func:`read_frames` does, and if ``out`` is the input video.
    """
    if out is not None and Path(out).resolve() == Path(path).resolve():
        raise UserError(f"out would overwrite the input video {path}. Choose another path.")
    with _opened(path) as container:
        rate = _rate(container.streams.video[0]) / check_count("every", every)
    tracker = Tracker(float(rate), threshold) if track else None
    # ByteTrack continues tracks with detections too weak to be reported on their own.
    least = threshold / 4 if track else threshold
    answers = answer_images(detector, path, texts, every=every, threshold=least, **options)
    followed = answers if tracker is None else (_confirmed(tracker.follow(a), threshold) for a in answers)
    if out is None:
        yield from followed
        return
    with VideoWriter(out, rate) as writer:
        for detections in followed:
            writer.write(detections.plot(limit=limit, min_side=0))
            yield detections


def _confirmed(detections: Detections, threshold: float) -> Detections:
    """Keep detections that are tracked or reach the threshold."""
    return detections[(detections.tracks > 0) | (detections.scores >= threshold)]  # type: ignore[operator]
