"""Code generation: what is asked, what is hidden, and what a function earns, run in a sandbox."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.jobs.train_code_generation import CodeGenerationConfig, make_arena
from selfplay_ray.sandbox import Limits, Sandbox, find_sandbox
from selfplay_ray.sandbox.limits import DEFAULT_LIMITS, Outcome
from selfplay_ray.tasks.code_generation import (
    EXAMPLES,
    LISTS,
    NUMBERS,
    CodeGenerationArena,
    Specification,
    code_in,
)
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Message

LARGER = Specification(
    "f(a, b)", "the larger of a and b", [[1, 2], [5, -3], [4, 4], [-1, -7]], ["2", "5", "4", "-1"]
)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return find_sandbox()
    except ConfigError as error:
        pytest.skip(str(error))


async def played(scripted: str, sandbox: Sandbox, asked: Specification = LARGER) -> GenerateResult:
    """One answer to ``asked``, by a Generator that says what it is given."""
    arena = CodeGenerationArena(8, sandbox, client=MockInferenceClient(lambda messages: scripted))
    return await arena.run_episode("write", asked)


@pytest.mark.parametrize(
    ("scripted", "passed", "returned"),
    [
        ("def f(a, b):\n    return max(a, b)", 1.0, 1.0),
        ("```python\ndef f(a, b):\n    return max(a, b)\n```\nThis returns the larger.", 1.0, 1.0),
        ("def f(a, b):\n    return a", 0.75, 1.0),  # 1 is wrong; 5, 4 and -1 are right
        ("def f(a, b):\n    return b", 0.5, 1.0),  # 2 and 4
        ("def f(a, b):\n    return str(max(a, b))", 0.0, 1.0),  # '2' isn't 2
        ("def f(a, b):\n    if a > b: return a", 0.5, 1.0),  # None, 5, None, -1
        ("def f(a, b):\n    return max(a, b) // (a - b) * (a - b)", 0.25, 0.75),  # 2, 0, 4 / 0, -6
        ("def f(a):\n    return a", 0.0, 0.0),
        ("def g(a, b):\n    return max(a, b)", 0.0, 0.0),
        ("def f(a, b):\n  return max(a, b", 0.0, 0.0),
        ("I would write a function.", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
async def test_the_reward_is_the_pass_rate(sandbox: Sandbox, scripted: str, passed: float, returned: float):
    """And a fifth of the share of inputs for which anything was returned."""
    result = await played(scripted, sandbox)
    assert result.rollout.error is None
    metrics = result.rollout.metrics
    assert (metrics["pass_rate/Generator"], metrics["returns/Generator"]) == (passed, returned)
    assert result.rewards["Generator"] == pytest.approx(passed + 0.2 * returned)


async def test_what_a_function_does_to_the_machine_stays_in_the_sandbox(sandbox: Sandbox, tmp_path):
    file = tmp_path / "file"
    result = await played(
        f"def f(a, b):\n    open({str(file)!r}, 'w').write('x')\n    return max(a, b)", sandbox
    )
    assert not file.exists()
    assert result.rewards == {"Generator": 0.0}


class Recording(Sandbox):
    """Keeps what it is to run, and runs nothing."""

    name = "recording"

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def run(self, program: str, stdin: str = "", limits: Limits = DEFAULT_LIMITS) -> Outcome:
        self.seen.append(program + stdin)
        return Outcome("ok", "", "", 0, 0.0)


async def test_nobody_is_told_what_is_expected():
    """Neither the Generator nor what it wrote: here the results would be 1001, 1002, ..."""
    recording, asked = Recording(), Specification("f(a)", "a thousand more", [[1], [2]], ["1001", "1002"])
    prompts: list[Sequence[Message]] = []

    def answer(messages: Sequence[Message]) -> str:
        prompts.append(messages)
        return "def f(a): return a"

    await CodeGenerationArena(8, recording, client=MockInferenceClient(answer)).run_episode("write", asked)
    assert "100" not in "".join(message["content"] for message in prompts[0])
    assert "100" not in "".join(recording.seen)
    assert "[(0, (1,)), (1, (2,))]" in recording.seen[0]


def test_an_answer_is_read_from_its_fences():
    assert code_in("def f(): pass") == "def f(): pass"
    assert code_in("Here:\n```python\ndef f(): pass\n```\nDone") == "\ndef f(): pass\n"
    assert code_in("```\ndef f(): pass") == "\ndef f(): pass"


def test_a_batch_has_groups_of_one_specification_each_and_depends_on_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        return CodeGenerationArena(16, Recording(), 8, 3, seed=seed).next_batch()

    requests = batch(1)
    assert requests == batch(1) != batch(2)
    assert len({request.group for request in requests}) == 2
    for group in (requests[:8], requests[8:]):
        assert len({(request.group, Specification(*request.artifact).returns) for request in group}) == 1
        specification = Specification(*group[0].artifact)
        assert len(specification.calls) == len(specification.wanted) == 3


@pytest.mark.parametrize("said", [*NUMBERS, *LISTS])
def test_references(said: str):
    """Each on numbers worked out by hand."""
    by_hand = {
        "the sum of a and b": 4, "a minus b": 10, "the product of a and b": -21, "the larger of a and b": 7,
        "the smaller of a and b": -3, "the distance between a and b": 10, "True if a is less than b, else False": False,
        "the square of a, plus b": 46, "the sum of a and twice b": 1, "a list of a and b": [7, -3],
        "the sum of the list a": 9, "the length of the list a": 4, "the largest number in the list a": 8,
        "the first element of the list a": 3, "the last element of the list a": -4,
        "the list a reversed": [-4, 8, 2, 3],
        "the list a sorted": [-4, 2, 3, 8], "the list a without its first element": [2, 8, -4],
        "the even numbers in the list a": [2, 8, -4], "the list a with each number doubled": [6, 4, 16, -8],
    }  # fmt: skip
    got = NUMBERS[said](7, -3) if said in NUMBERS else LISTS[said]([3, 2, 8, -4])
    assert got == by_hand[said]


async def test_the_examples_are_right(sandbox: Sandbox):
    (divide, smallest) = (f"def {signature}:\n    {body}" for signature, _, body in EXAMPLES)
    result = await played(divide, sandbox, Specification("f(a, b)", "", [[7, 2], [-7, 2]], ["3", "-4"]))
    assert result.rollout.metrics["pass_rate/Generator"] == 1
    result = await played(smallest, sandbox, Specification("f(a)", "", [[[3, -2, 5]]], ["-2"]))
    assert result.rollout.metrics["pass_rate/Generator"] == 1
    assert not {said for _, said, _ in EXAMPLES} & {*NUMBERS, *LISTS}


def test_without_a_sandbox_the_job_refuses():
    with pytest.raises(ConfigError, match="--sandbox nonesuch is unknown"):
        make_arena(CodeGenerationConfig(sandbox="nonesuch"))


def test_numbers_are_drawn_from_the_arena(sandbox: Sandbox):
    arena = CodeGenerationArena(8, sandbox)
    arena.rng = random.Random(3)
    assert {arena.specification().signature for _ in range(20)} == {"f(a)", "f(a, b)"}
