"""Answers of the page, independent of gradio.

Each image is encoded once per user; thresholds are applied to cached, unthresholded answers.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from smartclip_det.apis.app.snippets import DETECT, GROUND, MASKS, Query, command_line, python_lines
from smartclip_det.apis.demo import answer
from smartclip_det.apis.detections import SHOWN, Detections
from smartclip_det.apis.explanation import Explanation
from smartclip_det.apis.inputs import as_picture, check_count, check_threshold
from smartclip_det.apis.predictor import Predictor
from smartclip_det.apis.predictor_options import PredictorOptions
from smartclip_det.core.errors import UserError
from smartclip_det.visualization import draw_boxes, draw_heatmap, draw_mask_strip

#: Cache limits: users, and images and answers per user.
USERS, PICTURES, ANSWERS = 32, 4, 16
#: Request limits: phrases, maps on the masks tab, pixels of an image.
PHRASES, MAPS, PIXELS = 100, 12, 50_000_000
#: Smallest and largest width at which boxes are drawn; images are resized to fit.
NARROW, WIDE = 640, 1280
Key, Value = TypeVar("Key"), TypeVar("Value")


class LruDict(OrderedDict[Key, Value]):
    """The ``limit`` most recently used entries."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def get_or_make(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return an entry, creating it if needed; evicts the least recently used one beyond the limit."""
        if key not in self:
            self[key] = make()
        self.move_to_end(key)
        while len(self) > self.limit:
            self.popitem(last=False)
        return self[key]


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """An encoded image.

    Attributes:
        name: path used in commands and JSON.
        encoded: result of :meth:`Predictor.encode_image`.
        shown: the image at display size.
        scale: display pixels per image pixel.
    """

    name: str
    encoded: Any
    shown: Image.Image
    scale: float


@dataclass(eq=False)
class User:
    """Cache of a user. The lock serialises the requests of a user, so that an image is not encoded twice."""

    pictures: LruDict[str, EncodedPicture] = field(default_factory=lambda: LruDict(PICTURES))
    answers: LruDict[tuple[Any, ...], Any] = field(default_factory=lambda: LruDict(ANSWERS))
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class View:
    """Contents of a tab.

    Attributes:
        status: summary or error message.
        picture: image with boxes, or masks of the phrases.
        maps: similarity maps with their phrases; masks tab only.
        rows: table rows.
        data: JSON.
        command: command line that gives the same answer.
        lines: Python code that gives the same answer.
    """

    status: str
    picture: Image.Image | None = None
    maps: tuple[tuple[Image.Image, str], ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    data: str = ""
    command: str = ""
    lines: str = ""


class AppService:
    """Answers queries of several users with one predictor.

    Args:
        predictor: shared by all users.
        options: how the predictor was loaded; used in the snippets.
        samples: original paths of sample images by content hash (:func:`content_hash`). Other images are named by
            their file name.
    """

    def __init__(
        self, predictor: Predictor, options: PredictorOptions, samples: Mapping[str, Path] | None = None
    ) -> None:
        self.predictor, self.options, self.samples = predictor, options, dict(samples or {})
        self._users: LruDict[str, User] = LruDict(USERS)
        self._lock = threading.Lock()

    def detect(self, user: str, picture: str | Path | None, text: str, threshold: float) -> View:
        """Detect phrases.

        Args:
            user: session key.
            picture: path of the image.
            text: phrases, one per line.
            threshold: minimum score.

        Raises:
            UserError: for invalid input, and beyond the request limits.
        """
        return self._boxes(user, picture, text, DETECT, threshold)

    def ground(self, user: str, picture: str | Path | None, text: str, threshold: float, top_k: int) -> View:
        """Ground expressions: the ``top_k`` best boxes of each; see :meth:`detect`."""
        return self._boxes(user, picture, text, GROUND, threshold, check_count("top_k", top_k))

    def masks(self, user: str, picture: str | Path | None, text: str) -> View:
        """Similarity map of each phrase, and the dimensions its mask keeps; see :meth:`detect`."""
        phrases = read_phrases(text)
        if len(phrases) > MAPS:
            raise UserError(f"{len(phrases)} phrases given; the masks tab takes at most {MAPS}.")
        kept = self._user(user)
        with kept.lock:
            digest, opened = self._open(kept, picture)
            found: list[Explanation] = kept.answers.get_or_make(
                (digest, MASKS, phrases),
                lambda: [self.predictor.explain(p, image=opened.encoded) for p in phrases],
            )
        return _view_of_masks(opened, found, self._snippets(Query(MASKS, opened.name, phrases)))

    def forget(self, user: str) -> None:
        """Drop the cache of a user."""
        with self._lock:
            self._users.pop(user, None)

    def _boxes(
        self, user: str, picture: str | Path | None, text: str, kind: str, threshold: float, top_k: int = 1
    ) -> View:
        phrases, threshold = read_phrases(text), check_threshold(threshold)
        kept = self._user(user)
        with kept.lock:
            digest, opened = self._open(kept, picture)
            everything: Detections = kept.answers.get_or_make(
                (digest, kind, phrases, top_k),
                lambda: answer(self.predictor, phrases, ground=kind == GROUND, top_k=top_k, image=opened.encoded),
            )
        query = Query(kind, opened.name, phrases, threshold, top_k)
        return _view_of_boxes(opened, everything, threshold, self._snippets(query))

    def _user(self, key: str) -> User:
        with self._lock:
            return self._users.get_or_make(key, User)

    def _open(self, user: User, path: str | Path | None) -> tuple[str, EncodedPicture]:
        if not path:
            raise UserError("No image. Upload one or choose a sample.")
        digest = content_hash(Path(path))
        name = str(self.samples.get(digest, Path(path).name))
        # Part of the key, because a box file looks boxes up by image name.
        key = f"{digest} {name}"
        return key, user.pictures.get_or_make(key, lambda: self._encode(Path(path), name))

    def _encode(self, path: Path, name: str) -> EncodedPicture:
        picture = as_picture(path)
        try:
            width, height = picture.size
            if width * height > PIXELS:
                raise UserError(
                    f"The image has {width} x {height} pixels; the page takes at most {PIXELS:,}. Reduce it, or use "
                    "smartclip-det demo."
                )
            shown = Image.fromarray(picture.pixels())
        except UserError as error:
            # Do not show paths of the server.
            raise UserError(str(error).replace(str(path), name)) from error
        encoded = self.predictor.encode_image(replace(picture, name=name))
        scale = min(max(NARROW, shown.width), WIDE) / shown.width
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        size = (round(shown.width * scale), max(1, round(shown.height * scale)))
        return EncodedPicture(name, encoded, shown.resize(size, how), scale)

    def _snippets(self, query: Query) -> tuple[str, str]:
        return command_line(self.options, query), python_lines(self.options, query)


def content_hash(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: if the file is gone.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path.name} is no longer on the server. Upload it again.") from error


def read_phrases(text: str) -> tuple[str, ...]:
    """Split phrases at line breaks; blank lines and surrounding space are ignored.

    Raises:
        UserError: for no phrase, or more than :data:`PHRASES`.
    """
    phrases = tuple(line.strip() for line in (text or "").splitlines() if line.strip())
    if not phrases:
        raise UserError("No phrase. Write what to look for, one phrase per line.")
    if len(phrases) > PHRASES:
        raise UserError(
            f"{len(phrases)} phrases given; the page takes at most {PHRASES}. smartclip-det demo has no limit."
        )
    return phrases


def _view_of_boxes(opened: EncodedPicture, everything: Detections, threshold: float, snippets: tuple[str, str]) -> View:
    found = everything.above(threshold)
    drawn = found.top(SHOWN) if len(found) > SHOWN else found
    status = f"{len(found)} {'box' if len(found) == 1 else 'boxes'} with score >= {threshold:g}."
    if len(drawn) < len(found):
        status += f" The best {len(drawn)} are drawn; the table and the JSON list all."
    if not len(found) and len(everything):
        best = zip(everything.label_names[:3], everything.scores[:3], strict=True)
        status += f" Best scores: {', '.join(f'{n} {s:.3f}' for n, s in best)}."
    content = {"image": opened.name, "texts": list(found.names), "detections": found.to_list()}
    return View(
        status,
        draw_boxes(
            opened.shown, (drawn.boxes * opened.scale).tolist(), drawn.label_names, drawn.names, drawn.scores.tolist()
        ),
        rows=tuple((d.name, round(d.score, 4), *(round(v, 1) for v in d.box)) for d in found),
        data=json.dumps(content, indent=2),
        command=snippets[0],
        lines=snippets[1],
    )


def _view_of_masks(opened: EncodedPicture, found: list[Explanation], snippets: tuple[str, str]) -> View:
    kept = {e.text: np.flatnonzero(e.mask).tolist() for e in found}
    size = len(found[0].mask)
    status = f"Dark: the dimensions (of {size}) that a phrase keeps. Its cosines are computed over these alone."
    if all(len(k) == size for k in kept.values()):
        status = f"Each phrase keeps all {size} dimensions: the towers have no mask network, or masks are off."
    content = {
        "image": opened.name,
        "texts": [
            {
                "text": e.text,
                "of": size,
                "kept": kept[e.text],
                "cosine": {"lowest": float(e.similarity.min()), "highest": float(e.similarity.max())},
            }
            for e in found
        ],
    }
    return View(
        status,
        draw_mask_strip(np.stack([e.mask for e in found]), [e.text for e in found]),
        tuple((draw_heatmap(opened.shown, e.similarity), e.text) for e in found),
        tuple(
            (e.text, len(kept[e.text]), f"{len(kept[e.text]) / size:.0%}", *(round(float(v), 3) for v in (low, high)))
            for e, low, high in ((e, e.similarity.min(), e.similarity.max()) for e in found)
        ),
        json.dumps(content, indent=2),
        *snippets,
    )
