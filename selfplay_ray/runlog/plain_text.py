"""Text that a model or a library wrote, without what a terminal would obey."""

from __future__ import annotations

import unicodedata

# Control characters (escape sequences begin with one), format characters (they reverse or hide text),
# half surrogates, and the line and paragraph separators that some terminals obey.
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def plain_text(text: str) -> str:
    """``text`` without any character that a terminal would obey rather than show; only line ends are left."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in UNSAFE)


def one_line(text: str) -> str:
    """``plain_text`` without its line ends."""
    return " ".join(plain_text(text).split())
