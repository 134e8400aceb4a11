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
        ErrorBudgetExceeded,
        match=r"4 of 31 episodes of type 'solve' failed, more than error_budget=0.1 allows",
    ):
        budget.count(BAD)
    assert (budget.finished, budget.failed) == (31, 4)


def test_early_failures_are_shares_of_twenty():
    budget = ErrorBudget(0.1)
    budget.count(BAD)
    budget.count(BAD)  # 2 of 20
    with pytest.raises(ErrorBudgetExceeded, match=r"the last was r7:\nTraceback\nValueError: 7$"):
        budget.count(BAD)


def test_a_type_that_always_fails_is_not_hidden_by_others():
    budget = ErrorBudget(0.1)
    for _ in range(1000):
        budget.count(GOOD)
    budget.count(Rollout("p0", "propose", error="no"))
    budget.count(Rollout("p1", "propose", error="no"))
    with pytest.raises(ErrorBudgetExceeded, match="3 of 3 episodes of type 'propose' failed"):
        budget.count(Rollout("p2", "propose", error="no"))


def test_what_begins_to_fail_late_is_noticed_soon():
    budget = ErrorBudget(0.1)
    for _ in range(10_000):
        budget.count(GOOD)
    for _ in range(20):
        budget.count(BAD)
    with pytest.raises(ErrorBudgetExceeded, match="21 of the last 200 episodes of type 'solve' failed"):
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
