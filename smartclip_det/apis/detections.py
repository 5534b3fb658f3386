"""Results of predictors: detections of an image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from smartclip_det.apis.inputs import ImageLike, as_picture, check_count, check_threshold
from smartclip_det.core.errors import UserError, nearest, unknown_names
from smartclip_det.formats import written_labels as written
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.notes import note
from smartclip_det.utils.optional import optional

if TYPE_CHECKING:
    import pandas
    import supervision

#: Maximum number of boxes drawn unless more are requested.
SHOWN = 20
#: Shorter side, in pixels, at which labels leave objects visible.
READABLE = 256


@dataclass(frozen=True)
class Detection:
    """One detected box.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the image.
        score: in [0, 1].
        label: index into the vocabulary.
        name: class name of the label.
        track: track id in a video; None otherwise.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str
    track: int | None = None


@dataclass(eq=False, repr=False)
class Detections:
    """Detections of one image, sorted by descending score; indexing keeps the order.

    ``dets[0]`` is a :class:`Detection`; ``dets[:5]``, ``dets[dets.scores > 0.5]`` and ``dets[[2, 0]]`` are
    Detections.

    Attributes:
        boxes: ``[N, 4]`` xyxy pixels of the original image.
        scores: ``[N]`` in [0, 1].
        labels: ``[N]`` indices into ``names``.
        names: the vocabulary.
        image: the image, as given; None if unknown.
        tracks: ``[N]`` track ids in a video, 0 for objects not tracked yet; None otherwise.
        masks: ``[N, H, W]`` instance masks; None for heads without a mask branch.

    Raises:
        UserError: for arrays of different lengths, labels without a name, and non-finite numbers.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    image: ImageLike | None = field(default=None)
    tracks: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes)
        self.boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
        self.scores, self.labels = np.asarray(self.scores), np.asarray(self.labels)
        self.names = tuple(self.names)
        if not len(self.labels):
            self.labels = self.labels.astype(np.int64)
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise UserError(f"Boxes must be [N, 4] (x1, y1, x2, y2); got {list(self.boxes.shape)}.")
        count = len(self.boxes)
        for what in ("scores", "labels", "tracks", "masks"):
            value = getattr(self, what)
            if value is not None and len(value) != count:
                raise UserError(f"{count} boxes need {count} {what}; got {len(value)}.")
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise UserError("Boxes and scores must be finite numbers.")
        if count and not 0 <= self.labels.min() <= self.labels.max() < len(self.names):
            raise UserError(
                f"Labels range from {self.labels.min()} to {self.labels.max()}; there are {len(self.names)} "
                "names, numbered from 0."
            )

    @staticmethod
    def none(names: Sequence[str] = (), image: ImageLike | None = None) -> Detections:
        """Return empty detections."""
        return Detections(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), tuple(names), image
        )

    @staticmethod
    def join(parts: Sequence[Detections]) -> Detections:
        """Concatenate detections of one image with the same vocabulary, sorted by descending score.

        Raises:
            UserError: for an empty list, and for different vocabularies.
        """
        if not parts or any(p.names != parts[0].names for p in parts):
            raise UserError(
                "Only detections with the same vocabulary can be joined" + ("." if parts else "; got an empty list.")
            )
        arrays = {w: [getattr(p, w) for p in parts] for w in ("boxes", "scores", "labels", "tracks", "masks")}
        joined: dict[str, Any] = {
            w: None if any(v is None for v in values) else np.concatenate(values) for w, values in arrays.items()
        }
        merged = Detections(**joined, names=parts[0].names, image=parts[0].image)
        return merged.top(len(merged)) if len(merged) else merged

    def __len__(self) -> int:
        """Return N."""
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        """Iterate over the detections."""
        return (self[n] for n in range(len(self)))

    @overload
    def __getitem__(self, which: int) -> Detection: ...

    @overload
    def __getitem__(self, which: slice | Sequence[Any] | np.ndarray) -> Detections: ...

    def __getitem__(self, which: Any) -> Detection | Detections:
        """Return a Detection for an integer; Detections for a slice, ``[N]`` booleans, or a list of integers."""
        if isinstance(which, int | np.integer) and not isinstance(which, bool | np.bool_):
            n = int(which)
            if not -len(self) <= n < len(self):
                # IndexError, not UserError: Python's iteration protocol relies on it.
                raise IndexError(f"Index {n} is out of range for {len(self)} detections.")
            track = None if self.tracks is None else int(self.tracks[n])
            x1, y1, x2, y2 = (float(v) for v in self.boxes[n])
            label = int(self.labels[n])
            return Detection((x1, y1, x2, y2), float(self.scores[n]), label, self.names[label], track)
        index = which if isinstance(which, slice) else self._index(which)
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            tracks=None if self.tracks is None else self.tracks[index],
            masks=None if self.masks is None else self.masks[index],
        )

    def _index(self, which: Any) -> np.ndarray:
        index = (
            np.asarray(which if len(which) else np.zeros(0, int)) if hasattr(which, "__len__") else np.asarray(which)
        )
        if index.ndim == 1 and index.dtype == bool and len(index) == len(self):
            return index
        if index.ndim == 1 and np.issubdtype(index.dtype, np.integer):
            if len(index) and not -len(self) <= index.min() <= index.max() < len(self):
                raise IndexError(f"Indices up to {index.max()} are out of range for {len(self)} detections.")
            return index
        raise UserError(
            f"Index detections with an integer, a slice, {len(self)} booleans, or a list of integers; got "
            f"{type(which).__name__}" + (f" of length {len(which)}." if hasattr(which, "__len__") else ".")
        )

    def __repr__(self) -> str:
        """Counts by name, most frequent first."""
        names, counts = np.unique(self.label_names, return_counts=True) if len(self) else ((), ())
        order = sorted(zip(names, counts, strict=True), key=lambda c: (-c[1], c[0]))
        summary = ", ".join(f"{count} {name}" for name, count in order[:5]) + (", ..." if len(order) > 5 else "")
        return f"Detections({len(self)} boxes{': ' + summary if summary else ''})"

    @property
    def label_names(self) -> list[str]:
        """``[N]`` class names."""
        return [self.names[i] for i in self.labels]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image.

        Raises:
            UserError: if the image is unknown.
        """
        return as_picture(self.known_image()).size

    def of(self, *names: str) -> Detections:
        """Select the detections of the given names.

        Raises:
            UserError: for a name outside the vocabulary.
        """
        unknown = [n for n in names if n not in self.names]
        if unknown:
            raise unknown_names("names", unknown, self.names, "Choose from the vocabulary of these detections.")
        return self[np.isin(self.labels, [i for i, n in enumerate(self.names) if n in names])]

    def above(self, threshold: float | Mapping[str, float]) -> Detections:
        """Select detections that score at least ``threshold``, or at least the threshold of their own name.

        Args:
            threshold: one value for all names, or one per name (see ``smartclip-det calibrate``).

        Raises:
            UserError: for a value outside [0, 1], or a detected name without a threshold.
        """
        if not isinstance(threshold, Mapping):
            return self[self.scores >= check_threshold(threshold) - 1e-9]
        absent = [n for n in dict.fromkeys(self.label_names) if n not in threshold]
        if absent:
            near = nearest(absent[0], threshold)
            raise UserError(
                f"There is no threshold for {absent[0]!r}" + (f"; nearest: {', '.join(near)}." if near else ".")
            )
        limits = np.array([check_threshold(threshold[n]) for n in self.label_names])
        return self[self.scores >= limits - 1e-9] if len(self) else self

    def top(self, count: int) -> Detections:
        """Select the ``count`` best detections, best first."""
        return self[np.argsort(-self.scores, kind="stable")[: check_count("count", count)]]

    def nms(self, iou: float = 0.5, *, across_names: bool = False) -> Detections:
        """Suppress detections whose IoU with a better one of the same name exceeds ``iou``.

        Args:
            iou: IoU threshold, in [0, 1].
            across_names: suppress across names (class-agnostic NMS).
        """
        import torch

        from smartclip_det.models.selection import nms_per_class

        ranked = self.top(len(self)) if len(self) else self
        labels = np.zeros_like(ranked.labels) if across_names else ranked.labels
        boxes, scores, classes = (
            torch.from_numpy(np.ascontiguousarray(a)) for a in (ranked.boxes, ranked.scores, labels)
        )
        keep = nms_per_class(boxes, scores, classes, check_threshold(iou, "iou"))
        return ranked[keep.numpy()]

    def to_list(self) -> list[dict[str, Any]]:
        """Return plain values for JSON: ``box`` (xyxy), ``score``, ``name``, and ``track`` if there are tracks."""
        rows: list[dict[str, Any]] = [
            {"box": b, "score": s, "name": n}
            for b, s, n in zip(self.boxes.tolist(), self.scores.tolist(), self.label_names, strict=True)
        ]
        if self.tracks is not None:
            rows = [{**r, "track": int(t)} for r, t in zip(rows, self.tracks, strict=True)]
        return rows

    def to_json(self, path: str | Path | None = None) -> str:
        """Return JSON in the format of ``smartclip-det demo``: ``image`` and ``detections`` (:meth:`to_list`).

        Args:
            path: if given, the JSON is also written to this file.
        """
        name = None if self.image is None else as_picture(self.image).name
        text = json.dumps({"image": name, "texts": list(self.names), "detections": self.to_list()}, indent=2)
        if path is not None:
            write_whole(path, text)
        return text

    def to_supervision(self) -> supervision.Detections:
        """Convert to ``supervision.Detections``, with names in ``data["class_name"]``.

        Raises:
            UserError: if supervision is not installed.
        """
        return optional("supervision", "supervision").Detections(
            xyxy=self.boxes.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(int),
            tracker_id=None if self.tracks is None else self.tracks.astype(int),
            mask=None if self.masks is None else self.masks.astype(bool),
            data={"class_name": np.array(self.label_names, dtype=object if not len(self) else None)},
        )

    def to_coco(self, image_id: int | str = 1, categories: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Convert to COCO results (``bbox`` xywh) for ``pycocotools.COCO.loadRes``; with ``segmentation`` if masked.

        Args:
            image_id: image id in the annotation file.
            categories: category id of each name; default: its position in ``names``, from 1.

        Raises:
            UserError: for a name without an id.
        """
        if categories is None:
            numbers = list(range(1, len(self.names) + 1))
        else:
            absent = [n for n in dict.fromkeys(self.label_names) if n not in categories]
            if absent:
                raise unknown_names("names", absent, categories, "Pass the categories of the annotation file.")
            numbers = [categories.get(n, -1) for n in self.names]
        return written.coco_results(self.boxes, self.scores, self.labels, image_id, numbers, self.masks)

    def to_yolo(self, *, size: tuple[int, int] | None = None, scores: bool = False) -> str:
        """Convert to lines of a YOLO label file: label, centre x, centre y, width, height, relative to the image size.

        Args:
            size: (width, height) in pixels; default: that of the image.
            scores: append the scores; training labels have none.

        Raises:
            UserError: if neither size nor image is known, or boxes lie outside the image.
        """
        return written.yolo_text(self.boxes, self.labels, size or self.size, self.scores if scores else None)

    def to_pandas(self) -> pandas.DataFrame:
        """Convert to a table with columns ``x1 y1 x2 y2 score label name``, and ``track`` if there are tracks.

        Raises:
            UserError: if pandas is not installed.
        """
        columns: dict[str, Any] = {c: self.boxes[:, n] for n, c in enumerate(("x1", "y1", "x2", "y2"))}
        columns |= {"score": self.scores, "label": self.labels, "name": self.label_names}
        if self.tracks is not None:
            columns["track"] = self.tracks
        return optional("pandas", "pandas").DataFrame(columns)

    def plot(
        self, image: ImageLike | None = None, *, limit: int | None = SHOWN, min_side: int = READABLE
    ) -> Image.Image:
        """Draw boxes, names and scores on the image; the colour of a name is fixed for a given vocabulary.

        Args:
            image: default: the image of these detections.
            limit: maximum number of boxes, best first; a note reports omitted ones. None: all.
            min_side: images with a shorter side below this are enlarged, by a whole factor. 0: never.

        Raises:
            UserError: if the image is unknown.
        """
        from smartclip_det.visualization import draw_boxes

        shown = self if limit is None or len(self) <= check_count("limit", limit) else self.top(limit)
        if len(shown) < len(self):
            note(f"{len(shown)} of {len(self)} boxes are drawn, best first; plot(limit=None) draws all.")
        canvas = Image.fromarray(self._pixels(image))
        factor = max(1, -(-min_side // min(canvas.size)))
        return draw_boxes(
            canvas.resize((factor * canvas.width, factor * canvas.height), Image.Resampling.NEAREST),
            (factor * shown.boxes).tolist(),
            shown.label_names,
            self.names,
            shown.scores.tolist(),
            None if shown.tracks is None else shown.tracks.tolist(),
        )

    def crops(self, image: ImageLike | None = None, *, context: float = 1.0) -> list[Image.Image]:
        """Crop each box, clipped to the image; crops have at least one pixel.

        Args:
            image: default: the image of these detections.
            context: scale of the crop's sides relative to the box.

        Raises:
            UserError: if the image is unknown, or boxes lie outside it.
        """
        from smartclip_det.visualization.notebook import crops_of

        if not context > 0:
            raise UserError(f"context is the ratio of crop side to box side and must be above 0; got {context!r}.")
        picture = Image.fromarray(self._pixels(image))
        return crops_of(picture, written.inside(self.boxes, picture.size), context)

    def known_image(self, image: ImageLike | None = None) -> ImageLike:
        """Return the given image, or the image of these detections.

        Raises:
            UserError: if neither is known.
        """
        known = self.image if image is None else image
        if known is None:
            raise UserError("The image of these detections is not known. Pass image=.")
        return known

    def _pixels(self, image: ImageLike | None) -> np.ndarray:
        return as_picture(self.known_image(image)).pixels()

    def _repr_png_(self) -> bytes | None:
        """PNG for notebooks; None if the image is unknown."""
        from smartclip_det.visualization.notebook import png_of

        return None if self.image is None else png_of(self.plot())

    def _repr_html_(self) -> str:
        """Image and table for notebooks."""
        from smartclip_det.visualization.notebook import ROWS, answer_page

        return answer_page(repr(self), self._repr_png_(), [(d.name, d.score, d.box) for d in self[:ROWS]], len(self))
