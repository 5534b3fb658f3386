"""The log of a folder that is being labelled: a line for each picture, so that a run that dies loses none.

The first line tells what makes the answers (names, predictor, settings): a log of other answers is not continued. A
line holds what was found above the lowest score that is kept, whatever threshold and layout are asked for later; or why
a picture was left out.
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

#: Digits after the point of what is logged: pixels and scores.
PIXELS, SCORES = 2, 4
KIND = "smartclip_det.labels/1"


@dataclass(frozen=True)
class PictureLabels:
    """What was found in one picture, or why it was left out.

    Attributes:
        file: its path in the folder, with slashes.
        bytes: of the file, by which a changed one is known.
        size: width and height as shown.
        boxes: N xyxy boxes in pixels.
        scores: N scores.
        labels: N indices into the names.
        fault: why it was left out; empty otherwise.
    """

    file: str
    bytes: int
    size: tuple[int, int] = (0, 0)
    boxes: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    fault: str = ""

    @staticmethod
    def of(file: str, count: int, size: tuple[int, int], found: Any) -> PictureLabels:
        """From detections, rounded."""
        boxes = [[round(float(v), PIXELS) for v in box] for box in found.boxes]
        return PictureLabels(
            file, count, size, boxes, [round(float(s), SCORES) for s in found.scores], [int(k) for k in found.labels]
        )

    def above(self, thresholds: np.ndarray) -> PictureLabels:
        """Those that reach the threshold of their label.

        Args:
            thresholds: ``[C]``.
        """
        kept = [n for n, (s, k) in enumerate(zip(self.scores, self.labels, strict=True)) if s >= thresholds[k] - 1e-9]
        return replace(
            self,
            boxes=[self.boxes[n] for n in kept],
            scores=[self.scores[n] for n in kept],
            labels=[self.labels[n] for n in kept],
        )


class LabelLog:
    """One process at a time writes; a line that was cut by a kill is cut off."""

    def __init__(self, path: str | Path, facts: Mapping[str, Any]) -> None:
        """Build.

        Args:
            path: of the log.
            facts: what makes the answers; JSON values.
        """
        self.path, self.facts = Path(path), json.loads(json.dumps({"kind": KIND, **facts}, default=str))
        self.done: dict[str, PictureLabels] = {}
        self._handle: IO[bytes] | None = None

    def __enter__(self) -> LabelLog:
        """Open and read.

        Raises:
            UserError: where another process writes it, or it is of other answers.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = self.path.open("a+b")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._handle.close()
            raise UserError(
                f"Another run labels into {self.path.parent}. Wait for it, or give another --out."
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
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            handle.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            self._put([self.facts])
            return
        try:
            first = json.loads(lines[0])
            rows = [json.loads(line) for line in lines[1:]]
            self._check(first)
            # What was kept down to a lower score serves for a higher one.
            self.facts = first
            self.done = {r["file"]: PictureLabels(**{**r, "size": tuple(r["size"])}) for r in rows}
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.path} is no log of labels ({error}). Move it away, or give another --out."
            ) from error

    def _check(self, first: Mapping[str, Any]) -> None:
        if not isinstance(first, Mapping) or first.get("kind") != KIND:
            raise UserError(f"{self.path} is no log of labels of this version. Give another --out.")
        keys = dict.fromkeys([*self.facts, *first])
        other = [k for k in keys if k != "floor" and self.facts.get(k) != first.get(k)]
        if first.get("floor", 0) > self.facts.get("floor", 0):
            other.append("floor")
        if other:
            told = "; ".join(f"{k}: {_short(first.get(k))}, now {_short(self.facts.get(k))}" for k in other)
            raise UserError(
                f"{self.path.parent} holds labels that were made otherwise ({told}). Give another --out, or move it "
                "away."
            )

    def add(self, rows: Iterable[PictureLabels]) -> None:
        """Append lines; they are with the system when this returns."""
        new = list(rows)
        self._put([asdict(r) for r in new])
        self.done.update({r.file: r for r in new})

    def keep(self, files: Sequence[str]) -> None:
        """Leave the lines of these files alone, in their order, each once: a group that was cut was logged again."""
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
