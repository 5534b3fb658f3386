"""Grounding of referring expressions: parsed into entities and relations, then located."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch

from smartclip_det.apis.detections import Detections
from smartclip_det.apis.encoding import EncodesImages
from smartclip_det.apis.inputs import check_count, check_texts, check_threshold
from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.words import READINGS
from smartclip_det.models.grounding.dependency import reader_of
from smartclip_det.models.grounding.parsing import Entity


class GroundsExpressions(EncodesImages):
    """Mixin of :class:`Predictor` that grounds expressions."""

    parser: str
    _reader: Callable[[str], Entity] | None = None

    def tree(self, expression: str) -> Entity:
        """Parse an expression into entities, locations and relations, as used by :meth:`ground`."""
        if self._reader is None:
            self._reader = reader_of(self.parser)
        return self._reader(expression)

    @property
    def reads_trees(self) -> bool:
        """Whether :meth:`ground` uses :meth:`tree`; a trained head takes the whole expression."""
        return getattr(self.family, "policy", None) is not None

    @overload
    def ground(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self, expression: str, *, top_k: int = 1, threshold: float = 0.0, reading: str | None = None, image: Any = None
    ) -> Detections: ...

    @overload
    def ground(
        self,
        expression: Sequence[str],
        *,
        top_k: int = 1,
        threshold: float = 0.0,
        reading: str | None = None,
        image: Any = None,
    ) -> list[Detections]: ...

    @torch.no_grad()
    def ground(
        self,
        expression: str | Sequence[str],
        *,
        top_k: int = 1,
        threshold: float = 0.0,
        reading: str | None = None,
        image: Any = None,
    ) -> Detections | list[Detections]:
        """Locate referring expressions: with a trained head, or zero-shot with regions and parsed expressions.

        Texts are encoded without a template, all in one pass; the image is not encoded again.

        Args:
            expression: one expression, or several.
            top_k: maximum number of boxes per expression.
            threshold: minimum score; an expression without boxes above it means "none".
            reading: ``chunks`` (default): the entities of :meth:`tree`, each with its own mask, combined with locations
                and relations; ``expression``: the whole text with its mask; ``both``: their geometric mean. A trained
                head takes the whole expression.
            image: output of :meth:`encode_image`; default: the image set by this thread.

        Returns:
            Detections by descending score, or a list of them for several expressions.

        Raises:
            UserError: without an image, for blank texts, and for limits out of range.
        """
        texts, image = check_texts(expression, "expression"), self._image(image)
        top_k, threshold = check_count("top_k", top_k), check_threshold(threshold)
        chosen = check_choice("reading", reading or ("chunks" if self.reads_trees else "expression"), READINGS)
        if chosen != "expression" and not self.reads_trees:
            raise UserError(f"A {self.family.kind} takes the whole expression, so reading={chosen!r} does not apply.")
        trees = {t: Entity(t) if chosen == "expression" else self.tree(t) for t in texts}
        answers = self.family.ground(image, trees, chosen, top_k, threshold)
        found = [answers[t] for t in texts]
        return found[0] if isinstance(expression, str) else found
