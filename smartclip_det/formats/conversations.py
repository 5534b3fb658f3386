"""Find the answer in a conversation about an image, by role (ShareGPT4V, LLaVA, and chat APIs)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smartclip_det.formats.caption_counts import CaptionCounts, take_texts

_ASKS = {"human", "user"}
_ANSWERS = {"gpt", "assistant", "chatgpt", "model", "bot"}


def answer_of(turns: Any, counts: CaptionCounts, where: str) -> list[str]:
    """Return the texts of the first answer after the first question; conversations without one are counted.

    Args:
        turns: each with ``from`` or ``role`` (human, user; gpt, assistant, ...) and ``value`` or ``content``. Two
            turns without roles are question and answer.
        counts: counters for other conversations.
        where: name of the record.
    """
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not all(isinstance(t, Mapping) for t in turns):
        counts.add("no_answer", f"{where}: {type(turns).__name__} instead of a list of turns")
        return []
    roles = [_role(t) for t in turns]
    if not any(roles) and len(turns) == 2:
        return _texts(turns[1], counts, where)
    question = next((n for n, role in enumerate(roles) if role in _ASKS), 0)
    answers = [t for n, t in enumerate(turns) if n >= question and _is_answer(roles[n])]
    if not answers:
        counts.add("no_answer", f"{where}: roles {', '.join(r or 'none' for r in roles) or 'none'}")
        return []
    if len(answers) > 1:
        counts.add("later_answers", where)
    return _texts(answers[0], counts, where)


def _role(turn: Mapping[str, Any]) -> str:
    return str(turn.get("from") or turn.get("role") or "").strip().rstrip(":").lower()


def _is_answer(role: str) -> bool:
    return role in _ANSWERS or role.startswith("gpt")


def _texts(turn: Mapping[str, Any], counts: CaptionCounts, where: str) -> list[str]:
    content = turn["value"] if "value" in turn else turn.get("content")
    if isinstance(content, list):
        # Content parts of chat APIs: {"type": "text", "text": ...}, next to image parts.
        content = [
            p["text"] if isinstance(p, Mapping) and isinstance(p.get("text"), str) else p
            for p in content
            if not (isinstance(p, Mapping) and "image" in str(p.get("type")))
        ]
    return take_texts(content, counts, where)
