"""Judges that follow a script, and an arena whose players nobody asks."""

from __future__ import annotations

import re
from collections.abc import Callable

from selfplay_ray import Arena, MockInferenceClient

SHOWN = re.compile(r"(A|B):\nBEGIN (\w+)\n(.*?)\nEND \2", re.DOTALL)


def no_player(_messages: object) -> str:
    raise AssertionError("a player was asked in the judge's place")


def arena_with(judge: Callable[[str], str]) -> tuple[Arena, MockInferenceClient]:
    """An arena whose judge answers ``judge(question)``, and that judge's client."""
    client = MockInferenceClient(lambda messages: judge(messages[-1]["content"]))
    return Arena(MockInferenceClient(no_player), judge=client), client


def prefers(text: str) -> Callable[[str], str]:
    """A fair judge of two texts: the one that contains ``text``."""

    def judge(question: str) -> str:
        shown = {name: content for name, _, content in SHOWN.findall(question)}
        better = [name for name, content in shown.items() if text in content]
        return f"Verdict: {better[0]}" if len(better) == 1 else "Verdict: tie"

    return judge
