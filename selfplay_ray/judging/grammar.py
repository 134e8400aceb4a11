"""What a judge's reply says, if it says one thing."""

from __future__ import annotations

import re
from collections.abc import Sequence

LABEL = r"(?:(?:my |the |final |overall )*(?:verdict|winner|answer|choice|score|rating|grade)\s*(?:is\b)?\s*[:=]?\s*)?"
QUOTES = r"[\[\](){}\"'*_`]*"
"""What models put around a verdict, and what says nothing."""

END = r"[.!]?"


def read_choice(reply: str, choices: Sequence[str]) -> str | None:
    """The one of ``choices`` that ``reply`` ends with, on a line of its own: "B", "Verdict: B", "**The winner is B.**".

    None, an abstention, where its last line is anything else, or where another line chooses something else.
    """
    said = _said(reply, "|".join(map(re.escape, choices)))
    if said is None:
        return None
    return next(choice for choice in choices if choice.casefold() == said.casefold())


def read_score(reply: str, best: float) -> float | None:
    """The number from 0 to ``best`` that ``reply`` ends with, on a line of its own: "7", "Score: 7/10".

    None, an abstention, as for :func:`read_choice`, and for numbers that are out of range or of another range.
    """
    said = _said(reply, r"\d{1,6}(?:\.\d{1,6})?(?:\s*(?:/|out of)\s*\d{1,6})?")
    if said is None:
        return None
    number, _, of = re.sub(r"\s*(?:/|out of)\s*", "/", said).partition("/")
    if (of and float(of) != best) or float(number) > best:
        return None
    return float(number)


def _said(reply: str, wanted: str) -> str | None:
    line = re.compile(f"{QUOTES}{LABEL}{QUOTES}({wanted}){QUOTES}{END}{QUOTES}", re.IGNORECASE)
    lines = [text.strip() for text in reply.splitlines() if text.strip()]
    found = [match[1] for match in map(line.fullmatch, lines) if match]
    if not found or line.fullmatch(lines[-1]) is None:
        return None
    return found[-1] if len({said.casefold() for said in found}) == 1 else None
