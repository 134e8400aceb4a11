"""Absolute Zero: proposals, puzzles and rewards by hand; programs run in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.jobs.train_absolute_zero import AbsoluteZeroConfig, make_arena
from selfplay_ray.sandbox import Sandbox, find_sandbox
from selfplay_ray.tasks.absolute_zero import (
    EXAMPLES,
    KINDS,
    SEEDS,
    AbsoluteZeroArena,
    Puzzle,
    inputs_in,
    outputs,
    proposer_reward,
)
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Message, Rollout

DOUBLE = "def f(x):\n    return x * 2"
KNOWN = [{"program": f"def f(x):\n    return {body}", "input": "1"} for body in SEEDS[:3]]
PAIRS = [(3, "6"), (0, "0"), (5, "10"), (-1, "-2")]


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return find_sandbox()
    except ConfigError as error:
        pytest.skip(str(error))


def scripted(sandbox: Sandbox, reply: Callable[[str], str], solvers: int = 4) -> AbsoluteZeroArena:
    """An arena whose model answers the last thing it was asked with ``reply``."""

    def respond(messages: Sequence[Message]) -> str:
        return reply(messages[-1]["content"])

    return AbsoluteZeroArena(6, sandbox, solvers, client=MockInferenceClient(respond))


def test_puzzles_ask_for_what_is_hidden():
    assert Puzzle("deduce", DOUBLE, PAIRS).question() == f"{DOUBLE}\nWhat is f(3)?"
    assert Puzzle("abduce", DOUBLE, PAIRS).question() == f"{DOUBLE}\nFor which x is f(x) = 6?"
    assert Puzzle("induce", DOUBLE, PAIRS).question() == "f(3) = 6\nf(5) = 10\nWhat is f?"


@pytest.mark.parametrize(
    ("kind", "answer", "reward"),
    [
        ("deduce", "6", 1.0),
        ("deduce", " 6\n", 1.0),
        ("deduce", "7", -0.5),
        ("deduce", "'6'", -0.5),
        ("deduce", "six", -1.0),
        ("deduce", "x * 2", -1.0),
        ("deduce", "", -1.0),
        ("abduce", "3", 1.0),
        ("abduce", "4", -0.5),
        ("abduce", "'ab'", -0.5),  # f('ab') is 'abab'
        ("abduce", "None", -0.5),  # f(None) raises
        ("abduce", "x = 3", -1.0),
        ("induce", "def f(x):\n    return x * 2", 1.0),
        ("induce", "def f(x):\n    y = x\n    return x + y\n", 1.0),
        ("induce", "def f(x):\n    return 6 if x == 3 else 10", -0.5),  # right where it was shown
        ("induce", "def f(x):\n    return x / 0", -0.5),
        ("induce", "def f(x):\n    return (", -0.5),
        ("induce", "f doubles x", -1.0),
        ("induce", "lambda x: x * 2", -1.0),
    ],
)
async def test_a_solver_is_judged_by_running(sandbox: Sandbox, kind: str, answer: str, reward: float):
    result = await scripted(sandbox, lambda asked: answer).run_episode("solve", Puzzle(kind, DOUBLE, PAIRS))
    assert (result.rollout.error, result.rewards) == (None, {"Solver": reward})


async def test_any_input_with_that_output_is_right(sandbox: Sandbox):
    puzzle = Puzzle("abduce", "def f(x):\n    return x * x", [(3, "9")])
    result = await scripted(sandbox, lambda asked: "-3").run_episode("solve", puzzle)
    assert result.rewards == {"Solver": 1.0}


async def test_an_output_has_to_be_the_same_twice(sandbox: Sandbox):
    assert await outputs(sandbox, DOUBLE, [3, "a"]) == ["6", "'aa'"]
    assert await outputs(sandbox, "def f(x):\n    return 1 / x", [1, 0]) is None
    assert await outputs(sandbox, "import random\ndef f(x):\n    return random.random()", [1]) is None
    assert await outputs(sandbox, "def f(x):\n    return id(object()), object()", [1]) is None
    assert await outputs(sandbox, "def f(x):\n    return hash('a')", [1]) is None


@pytest.mark.parametrize(
    ("solved", "readable", "reward"),
    # 1 - mean, and 0 where there is nothing to learn
    [
        (0.0, True, 0.0),
        (0.25, True, 0.75),
        (0.5, True, 0.5),
        (0.75, True, 0.25),
        (1.0, True, 0.0),
        (None, True, -0.5),
        (None, False, -1.0),
    ],
)
def test_a_proposer_earns_what_can_be_learned(solved: float | None, readable: bool, reward: float):
    rollout = Rollout("b0.0", "propose", extras={"solved": solved, "readable": readable})
    assert proposer_reward(rollout, None) == {"Proposer": reward}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "proposal", "reward"),
    [
        ("deduce", f"{DOUBLE}\nf(3)", None),
        ("abduce", "def f(x):\n    y = x\n    return y\nf([1, 'a'])\n", None),
        ("deduce", DOUBLE, -1.0),  # no call
        ("deduce", f"{DOUBLE}\nf(x)", -1.0),  # no literal
        ("deduce", f"{DOUBLE}\nf(3) = 6", -1.0),
        ("deduce", "f(3)", -1.0),
        ("deduce", "Here is a function.", -1.0),
        ("deduce", "def f(x):\n    return 1 / x\nf(0)", -0.5),
        ("deduce", "def f(x):\n    return id(object())\nf(0)", -0.5),
        ("deduce", "def f(x):\n    return (\nf(0)", -0.5),
        ("induce", "1, 2, 3, 4", None),
        ("induce", "1, 2, 3", -1.0),
        ("induce", "1, 1, 2, 3", -1.0),
        ("induce", "x, y, z, 1", -1.0),
        ("induce", "'a', 'b', 1, 2", -0.5),  # 'a' + 2 isn't anything: of KNOWN, the last is 10 - x
    ],
)
async def test_proposals_that_hold_are_solved_and_others_pay(
    sandbox: Sandbox, kind: str, proposal: str, reward: float | None
):
    def reply(asked: str) -> str:
        return proposal if asked.startswith("Write a new") or "Write 4 inputs" in asked else "nothing"

    result = await scripted(sandbox, reply).run_episode("propose", (kind, KNOWN))
    assert result.rollout.error is None
    if reward is None:
        assert [child.rewards["Solver"] for child in result.children] == [-1.0] * 4
        assert result.rewards == {"Proposer": 0.0}  # nobody solved it
    else:
        assert (result.children, result.rewards) == ([], {"Proposer": reward})


async def test_solvers_decide_what_a_proposal_is_worth(sandbox: Sandbox):
    """One of four is right: 1 - 1/4."""
    answers = iter(["6", "7", "eight", "9"])

    def reply(asked: str) -> str:
        return next(answers) if "What is f(3)?" in asked else f"{DOUBLE}\nf(3)"

    result = await scripted(sandbox, reply).run_episode("propose", ("deduce", KNOWN))
    assert [child.rewards["Solver"] for child in result.children] == [1.0, -0.5, -1.0, -0.5]
    assert result.rewards == {"Proposer": 0.75}
    assert result.rollout.extras["puzzle"] == Puzzle("deduce", DOUBLE, [(3, "6")])


async def test_what_is_asked_shows_programs_of_the_buffer(sandbox: Sandbox):
    seen: dict[str, list[Message]] = {}

    def respond(messages: Sequence[Message]) -> str:
        seen[kind] = list(messages)
        return "nothing"

    arena = AbsoluteZeroArena(6, sandbox, 2, client=MockInferenceClient(respond))
    for kind in ("deduce", "induce"):
        await arena.run_episode("propose", (kind, KNOWN))
    assert [message["content"] for message in seen["deduce"][1::2]] == [
        f"{one['program']}\nf(1)" for one in KNOWN
    ]
    assert seen["induce"][-1]["content"] == f"{KNOWN[2]['program']}\nWrite 4 inputs x."
    assert inputs_in(seen["induce"][1]["content"]) == [2, 7, 1, 10]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_examples_shown_to_solvers_are_right(sandbox: Sandbox, kind: str):
    for example in EXAMPLES[kind]:
        result = await scripted(sandbox, lambda asked: example.answer()).run_episode("solve", example)  # noqa: B023
        assert result.rewards == {"Solver": 1.0}


def proposed(*puzzles: Puzzle | None) -> list[GenerateResult]:
    return [
        GenerateResult(Rollout(f"b0.{i}", "propose", extras={"puzzle": puzzle}, rewards={"Proposer": 0.75}))
        for i, puzzle in enumerate(puzzles)
    ]


def test_what_is_new_goes_into_the_buffer_and_copies_pay(sandbox: Sandbox):
    """Of three others, one is the same: 0.75 - 0.5 / 3. What the buffer has already pays 0.5."""
    arena = AbsoluteZeroArena(6, sandbox)
    new, old = Puzzle("deduce", DOUBLE, [(3, "6")]), Puzzle("deduce", KNOWN[0]["program"], [(9, "11")])
    results = proposed(new, new, old, None)
    arena.score_group(results)
    assert [result.rewards["Proposer"] for result in results] == pytest.approx(
        [0.75 - 0.5 / 3] * 2 + [0.25, 0.75]
    )
    store = arena.stores["programs"]
    assert store.count() == len(SEEDS) + 1
    assert store.get(DOUBLE).data == {"program": DOUBLE, "input": "3"}
    assert store.get(KNOWN[0]["program"]).data["input"] == "9"
    json.dumps(arena.state_dict())  # a checkpoint holds it


def test_inputs_for_a_known_program_are_not_kept(sandbox: Sandbox):
    arena = AbsoluteZeroArena(6, sandbox)
    results = proposed(Puzzle("induce", KNOWN[0]["program"], PAIRS))
    arena.score_group(results)
    assert results[0].rewards["Proposer"] == 0.75
    assert arena.stores["programs"].count() == len(SEEDS)


def test_a_failed_proposer_is_left_alone(sandbox: Sandbox):
    failed = GenerateResult(Rollout("b0.0", "propose", error="ValueError: …"))
    AbsoluteZeroArena(6, sandbox).score_group([failed])
    assert failed.rewards == {}


def test_a_batch_has_a_third_of_each_kind_and_depends_on_the_seed(sandbox: Sandbox):
    def batch(seed: int) -> list[EpisodeRequest]:
        return AbsoluteZeroArena(6, sandbox, seed=seed).next_batch()

    assert [request.group for request in batch(1)] == [*KINDS, *KINDS]
    assert batch(1) == batch(1) != batch(2)
    assert all(len({one["program"] for one in request.artifact[1]}) == 3 for request in batch(1))


async def test_a_step_compares_kinds_with_their_own(sandbox: Sandbox):
    """Everybody says the same: rewards are equal within a kind, so no advantage, and different between kinds."""
    step = await scripted(sandbox, lambda asked: "1, 2, 3, 4").step()
    rewards: dict[Any, set[float]] = {}
    for result in step.results:
        rewards.setdefault(result.group, set()).add(result.rollout.metrics["proposer_reward/Proposer"])
    assert rewards == {"deduce": {-1.0}, "abduce": {-1.0}, "induce": {0.0}}
    assert {record.advantage for group in step.groups for record in group.records} <= {0.0}
    assert {group.id.rpartition("/")[2] for group in step.groups} == set(KINDS)


def test_without_a_sandbox_the_job_refuses():
    with pytest.raises(ConfigError, match="--sandbox nonesuch is unknown"):
        make_arena(AbsoluteZeroConfig(sandbox="nonesuch"))
