"""Counts of what was left out or taken otherwise than one might think, by reason, each with its first occurrence."""

from __future__ import annotations

from typing import ClassVar


class ReasonCounts(dict[str, int]):
    """Counts by reason; a subclass says what its reasons mean.

    Attributes:
        first: reason to what it occurred at first.
    """

    meanings: ClassVar[dict[str, str]] = {}

    def __init__(self, **start: int) -> None:
        super().__init__(**start)
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        """Count one; ``where`` names the record or file."""
        self[reason] = self.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    def table(self) -> str:
        """A line for each reason that occurred: count, what it means, where first; empty where none did."""
        told = [(f"{self[r]:,}", meaning, self.first.get(r, "")) for r, meaning in self.meanings.items() if self.get(r)]
        wide = max((len(count) for count, _, _ in told), default=0)
        return "\n".join(f"  {count:>{wide}s}  {meaning}; first: {first}" for count, meaning, first in told)

    def reasons(self, total: str = "") -> str:
        """The reasons that occurred on one line, each by its first record; ``total`` only where it says all."""
        told = [r for r in self.meanings if self.get(r)]
        own = [r for r in told if r != total] or told
        return "; ".join(f"{self.first.get(r, '')}: {self.meanings[r].split(':')[0]} ({self[r]:,})" for r in own)
