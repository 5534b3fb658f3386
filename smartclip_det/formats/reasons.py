"""Counts, by reason, of entries that were skipped or interpreted, each with its first occurrence."""

from __future__ import annotations

from typing import ClassVar


class ReasonCounts(dict[str, int]):
    """Counts by reason; subclasses define what the reasons mean.

    Attributes:
        first: reason -> first occurrence.
    """

    meanings: ClassVar[dict[str, str]] = {}

    def __init__(self, **start: int) -> None:
        super().__init__(**start)
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        """Count one occurrence; ``where`` names the record or file."""
        self[reason] = self.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    def table(self) -> str:
        """Format one line per reason that occurred: count, meaning, first occurrence; empty if none did."""
        rows = [(f"{self[r]:,}", meaning, self.first.get(r, "")) for r, meaning in self.meanings.items() if self.get(r)]
        wide = max((len(count) for count, _, _ in rows), default=0)
        return "\n".join(f"  {count:>{wide}s}  {meaning}; first: {first}" for count, meaning, first in rows)

    def reasons(self, total: str = "") -> str:
        """Format the reasons that occurred on one line, each with its first record.

        ``total`` only if it is the only one.
        """
        occurred = [r for r in self.meanings if self.get(r)]
        own = [r for r in occurred if r != total] or occurred
        return "; ".join(f"{self.first.get(r, '')}: {self.meanings[r].split(':')[0]} ({self[r]:,})" for r in own)
