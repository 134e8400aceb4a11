"""How good a player is, from who beat whom. A result is the first player's score: 1 a win, 0.5 a draw, 0 a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

ELO_SCALE = 400.0
CONVERGED = 1e-12


def elo_expected(rating: float, opponent: float) -> float:
    """The score that a player rated ``rating`` can expect: 1 / (1 + 10^((opponent - rating) / 400)).

    Elo 1978, The Rating of Chessplayers, Past and Present, section 8.4, in the logistic form.
    """
    return 1.0 / (1.0 + math.pow(10.0, (opponent - rating) / ELO_SCALE))


def elo_update(rating: float, opponent: float, score: float, k_factor: float) -> tuple[float, float]:
    """Both ratings after a match: R + K (S - E), and as much less for the opponent (Elo 1978, equation 2)."""
    gained = k_factor * (score - elo_expected(rating, opponent))
    return rating + gained, opponent - gained


class Match(NamedTuple):
    """Players by their index, and the first one's score."""

    first: int
    second: int
    score: float


def bradley_terry(players: int, matches: Sequence[Match], iterations: int = 1000) -> list[float]:
    """The strength of each of ``players``, as the log-odds that it beats an average one, whose strength is 0.

    P(i beats j) = 1 / (1 + exp(s_j - s_i)); fitted by Hunter 2004, MM algorithms for generalized Bradley-Terry models,
    equation 3. Everybody has drawn once against the average player besides, so that who won or lost everything has a
    finite strength, and who played nobody has 0. The order of the matches makes no difference.
    """
    worth = [1.0] * players
    for _ in range(iterations):
        before, worth = worth, [_improved(player, worth, matches) for player in range(players)]
        if all(math.isclose(old, new, rel_tol=CONVERGED) for old, new in zip(before, worth, strict=True)):
            break
    return [math.log(value) for value in worth]


def _improved(player: int, worth: Sequence[float], matches: Sequence[Match]) -> float:
    """Wins, over the sum of 1 / (own worth + opponent's) over all matches; the draw against the average included."""
    wins, weight = 0.5, 1.0 / (worth[player] + 1.0)
    for first, second, score in matches:
        if player in (first, second):
            wins += score if player == first else 1.0 - score
            weight += 1.0 / (worth[first] + worth[second])
    return wins / weight
