"""How many failures a run bears."""

from __future__ import annotations

import pytest

from selfplay_ray import Rollout
from selfplay_ray.error_budget import ErrorBudget
from selfplay_ray.errors import ErrorBudgetExceeded

GOOD, BAD = Rollout("ok", "solve"), Rollout("r7", "solve", error="Traceback\nValueError: 7\n")


def test_the_first_failure_beyond_the_share_ends_the_run_and_is_told():
    budget = ErrorBudget(0.1)
    for _ in range(27):
        budget.count(GOOD)
    for _ in range(3):
        budget.count(BAD)  # 3 of 30 are a tenth
    with pytest.raises(
        ErrorBudgetExceeded, match=r"4 of 31 episodes failed, more than error_budget=0.1 allows"
    ):
        budget.count(BAD)
    assert (budget.finished, budget.failed) == (31, 4)


def test_early_failures_are_shares_of_twenty():
    budget = ErrorBudget(0.1)
    budget.count(BAD)
    budget.count(BAD)  # 2 of 20
    with pytest.raises(ErrorBudgetExceeded, match=r"the last was 'solve' \(r7\):\nTraceback\nValueError: 7$"):
        budget.count(BAD)


def test_without_a_budget_the_first_failure_ends_the_run():
    budget = ErrorBudget(0.0)
    budget.count(GOOD)
    with pytest.raises(ErrorBudgetExceeded):
        budget.count(BAD)


def test_a_budget_of_one_bears_everything():
    budget = ErrorBudget(1.0)
    for _ in range(100):
        budget.count(BAD)
    assert budget.failed == 100
