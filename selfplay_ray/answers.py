"""Is a reply right? Pure functions of the reply and the known answer, worth from 0 to 1.

What a model wrote may be anything: what can't be read is worth 0, and none of these raises for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from selfplay_ray.errors import ConfigError

BOX = r"\boxed{"
TAG, END_TAG = "<answer>", "</answer>"
MARK = "####"

NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![)\]}])(?P<sign>-))?"  # no minus between two numbers: 10-5 ends with 5
    r"(?P<value>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?P<exponent>e[-+]?\d{1,3}(?!\w))?"
    r"(?:\s?/\s?(?P<over>\d+))?"
    r"(?P<percent>\s?(?:%|percent\b))?",
    re.ASCII | re.IGNORECASE,
)
LONGEST = 50  # characters of a number; converting a very long one takes very long
TOLERANCE = Fraction(1, 10**6)

LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\left|\\right|\\[!,;: ]|\^\s*\{?\s*\\circ\s*\}?"), ""),
    (re.compile(r"\\(?=[%$#&])"), ""),
)


def same_text(reply: str, answer: str) -> float:
    """1 if the reply's final answer is ``answer``, whatever its case, spaces, quotes and full stop; else 0."""
    wanted = _bare(answer)
    return float(wanted != "" and _bare(reply) == wanted)


def same_number(reply: str, answer: str) -> float:
    """1 if the last number in the reply's final answer is the last in ``answer``; else 0.

    Units and currencies are no part of a number. Thousands may be separated by commas; 3/4, 1.5e3 and LaTeX's
    fractions are read. 50% is 50, and where only one of the two has the percent sign also 0.5. Whole numbers are
    compared exactly, others to a millionth of the answer.
    """
    said, wanted = read_number(reply), read_number(answer)
    if said is None or wanted is None:
        return 0.0
    values = {said.value}
    if said.percent and not wanted.percent:
        values.add(said.value / 100)
    if wanted.percent and not said.percent:
        values.add(said.value * 100)
    return float(any(_close(value, wanted.value) for value in values))


@dataclass(frozen=True, slots=True)
class Matching:
    """1 if ``pattern`` is found in the reply; in it ``{answer}`` stands for the known answer.

    ``^answer: {answer}$`` asks for a line of that form. ``^`` and ``$`` are the ends of lines.

    Raises:
        ConfigError: the pattern isn't a regular expression.
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self._filled("answer"))
        except re.error as error:
            raise ConfigError(f"the pattern {self.pattern!r} is no regular expression: {error}") from None

    def __call__(self, reply: str, answer: str) -> float:
        return float(re.search(self._filled(answer), reply, re.MULTILINE) is not None)

    def _filled(self, answer: str) -> str:
        return self.pattern.replace("{answer}", re.escape(answer.strip()))


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was written: 12.5% has the value 12.5 and a percent sign."""

    value: Fraction
    percent: bool


def read_number(text: str) -> Number | None:
    """The last number in the final answer of ``text``; None if there is none that can be read."""
    found = list(NUMBER.finditer(plain(final_answer(text))))
    return _number(found[-1]) if found else None


def final_answer(text: str) -> str:
    r"""What is in the last ``\boxed{}``, or else in the last ``<answer>`` tags, or else after the last ``####``, or
    else all of ``text``. A box or a tag that isn't closed holds nothing."""
    if BOX in text:
        return _in_last_box(text)
    if TAG in text:
        answer, closed, _ = text.rpartition(TAG)[2].partition(END_TAG)
        return answer if closed else ""
    return text.rpartition(MARK)[2]


def plain(text: str) -> str:
    """``text`` without LaTeX's and currencies' marks around numbers, its minus signs as one keyboard's."""
    for pattern, replacement in LATEX:
        text = pattern.sub(replacement, text)
    return re.sub("[$€£]", "", text).replace("\N{MINUS SIGN}", "-")


def _bare(text: str) -> str:
    return " ".join(plain(final_answer(text)).casefold().split()).strip(" .!\"'`*")


def _in_last_box(text: str) -> str:
    content = text.rpartition(BOX)[2]
    depth = 1
    for place, character in enumerate(content):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return content[:place]
    return ""


def _number(found: re.Match[str]) -> Number | None:
    digits = found["value"].replace(",", "") + (found["exponent"] or "")
    over = found["over"] or "1"
    if len(digits) > LONGEST or len(over) > LONGEST or int(over) == 0:
        return None
    value = Fraction(digits) / int(over)
    return Number(-value if found["sign"] else value, found["percent"] is not None)


def _close(said: Fraction, wanted: Fraction) -> bool:
    if wanted.denominator == 1:
        return said == wanted
    return abs(said - wanted) <= abs(wanted) * TOLERANCE
