"""Judging that is hard to fool: both orders, several votes, verdicts read by a grammar, and an abstention where one
can't be read.

A judge is asked without a role, so nothing it says is trained on, and the base model answers, which no training
moves. What it judges is fenced as data.
"""

from __future__ import annotations

from selfplay_ray.judging.grading import Example, Grade, GradingJudge, YesNoJudge
from selfplay_ray.judging.grammar import read_choice, read_score
from selfplay_ray.judging.known_pairs import Agreement, KnownPair, agreement, agreement_metrics
from selfplay_ray.judging.pairwise import PairwiseJudge, PairwiseVerdict

__all__ = [
    "Agreement",
    "Example",
    "Grade",
    "GradingJudge",
    "KnownPair",
    "PairwiseJudge",
    "PairwiseVerdict",
    "YesNoJudge",
    "agreement",
    "agreement_metrics",
    "read_choice",
    "read_score",
]
