"""Log of a labelling run: one line per image, so that an interrupted run loses nothing.

The first line records what determines the results (names, predictor, settings); a log with other settings is not
continued. A line has the detections above the lowest logged score, independent of the threshold and format chosen
later, or why an image was skipped.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.utils.files import write_whole

#: Logged decimals of pixels and scores.
PIXELS, SCORES = 2, 4
KIND = "smartclip_det.labels/1"


@dataclass(frozen=True)
class PictureLabels:
    """Detections of one image, or why it was skipped.

    Attributes:
        file: path in the folder, with slashes.
        bytes: file size in bytes, to detect changed files.
        size: (width, height) after EXIF rotation.
        boxes: N xyxy boxes in pixels.
        scores: N scores.
        labels: N indices into the names.
        fault: why it was skipped; otherwise empty.
    """

    file: str
    bytes: int
    size: tuple[int, int] = (0, 0)
    boxes: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    fault: str = ""

    @staticmethod
    def of(file: str, count: int, size: tuple[int, int], detections: Any) -> PictureLabels:
        """Build from detections, rounded."""
        boxes = [[round(float(v), PIXELS) for v in box] for box in detections.boxes]
        return PictureLabels(
            file,
            count,
            size,
            boxes,
            [round(float(s), SCORES) for s in detections.scores],
            [int(k) for k in detections.labels],
        )

    def above(self, thresholds: np.ndarray) -> PictureLabels:
        """Keep the detections that reach the threshold of their label.

        Args:
            thresholds: ``[C]``.
        """
        keep = [n for n, (s, k) in enumerate(zip(self.scores, self.labels, strict=True)) if s >= thresholds[k] - 1e-9]
        return replace(
            self,
            boxes=[self.boxes[n] for n in keep],
            scores=[self.scores[n] for n in keep],
            labels=[self.labels[n] for n in keep],
        )


class LabelLog:
    """Append-only log with a single writer; an incomplete last line is truncated."""

    def __init__(self, path: str | Path, facts: Mapping[str, Any]) -> None:
        """Initialise the log.

        Args:
            path: path of the log.
            facts: what determines the results; JSON values.
        """
        self.path, self.facts = Path(path), json.loads(json.dumps({"kind": KIND, **facts}, default=str))
        self.done: dict[str, PictureLabels] = {}
        self._handle: IO[bytes] | None = None

    def __enter__(self) -> LabelLog:
        """Lock, open and read the log.

        Raises:
            UserError: if another process is writing to it, or it was made with other settings.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = self.path.open("a+b")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._handle.close()
            raise UserError(
                f"Another run is writing to {self.path.parent}. Wait for it, or choose another --out."
            ) from error
        try:
            self._read(self._handle)
        except Exception:
            self._handle.close()
            raise
        return self

    def _read(self, handle: IO[bytes]) -> None:
        handle.seek(0)
        content = handle.read()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            handle.truncate(len(complete))
        lines = complete.splitlines()
        if not lines:
            self._put([self.facts])
            return
        try:
            first = json.loads(lines[0])
            rows = [json.loads(line) for line in lines[1:]]
            self._check(first)
            # A log down to a lower score can also serve a higher one.
            self.facts = first
            self.done = {r["file"]: PictureLabels(**{**r, "size": tuple(r["size"])}) for r in rows}
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.path} is not a label log ({error}). Move it away, or choose another --out."
            ) from error

    def _check(self, first: Mapping[str, Any]) -> None:
        if not isinstance(first, Mapping) or first.get("kind") != KIND:
            raise UserError(f"{self.path} is not a label log of this version. Choose another --out.")
        keys = dict.fromkeys([*self.facts, *first])
        other = [k for k in keys if k != "floor" and self.facts.get(k) != first.get(k)]
        if first.get("floor", 0) > self.facts.get("floor", 0):
            other.append("floor")
        if other:
            changes = "; ".join(f"{k}: {_short(first.get(k))}, now {_short(self.facts.get(k))}" for k in other)
            raise UserError(
                f"{self.path.parent} has labels made with other settings ({changes}). Choose another --out, or move it "
                "away."
            )

    def add(self, rows: Iterable[PictureLabels]) -> None:
        """Append lines; they are flushed to the system on return."""
        new = list(rows)
        self._put([asdict(r) for r in new])
        self.done.update({r.file: r for r in new})

    def keep(self, files: Sequence[str]) -> None:
        """Keep only the lines of these files, in order and without repeats (an interrupted group is logged again)."""
        self.done = {f: self.done[f] for f in files}
        text = "".join(f"{json.dumps(v)}\n" for v in (self.facts, *map(asdict, self.done.values())))
        if self.path.read_text(encoding="utf-8") != text:
            write_whole(self.path, text)

    def _put(self, values: Iterable[Mapping[str, Any]]) -> None:
        if self._handle is None:
            raise UserError(f"{self.path} is not open.")
        self._handle.write("".join(json.dumps(v) + "\n" for v in values).encode())
        self._handle.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        if self._handle is not None:
            self._handle.close()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
