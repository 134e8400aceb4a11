"""Ratings, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.ratings import Match, bradley_terry, elo_expected, elo_update


def test_equals_expect_half_and_400_points_are_ten_to_one():
    assert elo_expected(1000, 1000) == 0.5
    assert elo_expected(1400, 1000) == pytest.approx(10 / 11)
    assert elo_expected(1000, 1400) == pytest.approx(1 / 11)


def test_a_rating_moves_by_k_times_what_was_not_expected():
    # Equals: K (1 - 0.5) = 16. With 400 points more: a win is worth 32 × 1/11, a loss costs 32 × 10/11.
    assert elo_update(1000, 1000, 1.0, 32) == (1016, 984)
    assert elo_update(1000, 1000, 0.5, 32) == (1000, 1000)
    assert elo_update(1400, 1000, 1.0, 32) == pytest.approx((1400 + 32 / 11, 1000 - 32 / 11))
    assert elo_update(1400, 1000, 0.0, 32) == pytest.approx((1400 - 320 / 11, 1000 + 320 / 11))


@given(st.floats(0, 3000), st.floats(0, 3000), st.floats(0, 1), st.floats(0, 100))
def test_no_points_are_made_or_lost(rating: float, opponent: float, score: float, k: float):
    assert sum(elo_update(rating, opponent, score, k)) == pytest.approx(rating + opponent)


def test_one_win_in_one_match():
    """With worth x for the winner, and by symmetry 1/x for the loser: x²/(x² + 1) + x/(x + 1) = 1 + 1/2, the win it had
    and the half against the average. That is x³ - x² - x - 3 = 0, so x = 2.1304."""
    won, lost = bradley_terry(2, [Match(0, 1, 1.0)])
    x = math.exp(won)
    assert x == pytest.approx(2.1304, abs=1e-4)
    assert x**2 / (x**2 + 1) + x / (x + 1) == pytest.approx(1.5)
    assert lost == pytest.approx(-won)


def test_who_played_nobody_is_average():
    assert bradley_terry(3, [Match(0, 1, 0.5)]) == pytest.approx([0, 0, 0])
    assert bradley_terry(3, [Match(0, 1, 0.0)])[2] == 0


def test_more_wins_make_stronger_and_the_order_of_matches_is_no_matter():
    matches = [Match(0, 1, 1.0), Match(0, 2, 1.0), Match(1, 2, 1.0)]
    strengths = bradley_terry(3, matches)
    assert strengths[0] > strengths[1] > strengths[2]
    assert strengths[1] == pytest.approx(0, abs=1e-9)
    assert bradley_terry(3, matches[::-1]) == pytest.approx(strengths)
    assert bradley_terry(3, [Match(b, a, 1 - score) for a, b, score in matches]) == pytest.approx(strengths)
