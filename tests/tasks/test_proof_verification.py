"""Proofs line by line: legal and illegal steps, complete and cut short, and what both players get for them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.config import RunConfig
from selfplay_ray.tasks.proof_verification import (
    ProofVerificationArena,
    is_complete,
    read_proof,
    rewritings,
    valid_steps,
)
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Message


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("2 + 3", ["5"]),
        ("2 + 3 + 4", ["5 + 4", "2 + 7"]),
        ("2 + 3 * 4", ["2 + 12"]),  # not 5 * 4
        ("2 * 3 + 4", ["6 + 4"]),
        ("2 * 3 * 4", ["6 * 4", "2 * 12"]),
        ("1 + 2 * 3 + 4 + 5", ["1 + 6 + 4 + 5", "1 + 2 * 3 + 9"]),
        ("7", []),
        ("", []),
    ],
)
def test_one_operation_less(expression: str, allowed: list[str]):
    assert rewritings(expression) == allowed


@given(st.lists(st.integers(0, 99), min_size=2, max_size=6), st.data())
def test_every_rewriting_has_the_same_value(numbers: list[int], data: st.DataObject):
    symbols = data.draw(st.lists(st.sampled_from("+*"), min_size=len(numbers) - 1, max_size=len(numbers) - 1))
    text = str(numbers[0]) + "".join(f" {s} {n}" for s, n in zip(symbols, numbers[1:], strict=True))
    assert rewritings(text)
    for new in rewritings(text):
        assert eval(new) == eval(text)
        assert new.count(" ") == text.count(" ") - 2


@pytest.mark.parametrize(
    ("text", "proof"),
    [
        ("5 + 4\n9", ["5 + 4", "9"]),
        ("= 5+4\n\n= 9.", ["5 + 4", "9"]),
        ("05 + 4", ["5 + 4"]),
        ("5 + 4\nso it is\n9", ["5 + 4", ""]),  # nothing counts after what can't be read
        ("5 + 4 = 9", [""]),
        ("5 - 4", [""]),
        ("1234567", [""]),
        ("", []),
        ("1\n" * 20, ["1"] * 8),
    ],
)
def test_a_proof_is_read_up_to_what_cannot_be(text: str, proof: list[str]):
    assert read_proof(text) == proof


@pytest.mark.parametrize(
    ("proof", "valid", "complete", "reward"),
    # of 2 + 3 + 4, which takes 2 steps: 0.1 for each of the form of one, 0.2 for each valid one, 0.4 for all of it
    [
        (["5 + 4", "9"], 2, True, 1.0),
        (["2 + 7", "9"], 2, True, 1.0),
        (["5 + 4"], 1, False, 0.3),  # cut short
        (["5 + 4", "8"], 1, False, 0.4),
        (["6 + 4", "10"], 0, False, 0.2),  # what follows from a wrong step is not valid
        (["9"], 0, False, 0.0),  # true, but two steps at once
        (["5 + 4", "5 + 4", "9"], 1, False, 0.3),  # standing still is no step
        (["5 + 4", "9", "9"], 2, False, 0.6),  # says more than it should
        (["5 + 4", "9", ""], 2, False, 0.6),
        ([""], 0, False, 0.0),
        ([], 0, False, 0.0),
    ],
)
async def test_a_prover_is_graded(proof: list[str], valid: int, complete: bool, reward: float):
    assert valid_steps("2 + 3 + 4", proof) == valid
    assert is_complete("2 + 3 + 4", proof) == complete
    text = "\n".join(line or "hm" for line in proof)
    result = await scripted_arena(text).run_episode("prove", "2 + 3 + 4")
    assert result.rewards == {"Prover": pytest.approx(reward)}
    assert result.rollout.metrics["complete/Prover"] == complete


def scripted_arena(proof: str, *verdicts: str) -> ProofVerificationArena:
    """One whose Prover says ``proof``, and whose Verifier says ``verdicts`` in turn, or else "valid"."""
    judged = iter(verdicts)

    def reply(messages: Sequence[Message]) -> str:
        return proof if messages[-1]["content"].startswith("Work out") else next(judged, "valid")

    return ProofVerificationArena(4, 4, verdicts=2, client=MockInferenceClient(reply))


async def test_every_step_that_can_be_read_is_judged():
    """2 + 3 + 4 → 6 + 4 is invalid, 6 + 4 → 10 is valid, whatever came before; the last line is no step."""
    result = await scripted_arena("6 + 4\n10\nDone!").run_episode("prove", "2 + 3 + 4")
    assert [child.rollout.artifact for child in result.children] == [
        ["2 + 3 + 4", "6 + 4"],
        ["2 + 3 + 4", "6 + 4"],
        ["6 + 4", "10"],
        ["6 + 4", "10"],
    ]
    assert [child.group for child in result.children] == ["step-0", "step-0", "step-1", "step-1"]
    assert [child.rewards["Verifier"] for child in result.children] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("verdict", "step", "reward"),
    [
        ("valid", ["2 + 3", "5"], 1),
        ("Valid.", ["2 + 3", "5"], 1),
        ("invalid", ["2 + 3", "5"], 0),
        ("invalid", ["2 + 3", "6"], 1),
        ("valid", ["2 + 3", "6"], 0),
        ("valid, I think", ["2 + 3", "5"], 0),
        ("", ["2 + 3", "6"], 0),
    ],
)
async def test_a_verifier_is_graded_by_the_checker(verdict: str, step: list[str], reward: int):
    result = await scripted_arena("", verdict).run_episode("verify", step)
    assert result.rewards == {"Verifier": reward}
    unread = verdict in ("", "valid, I think")
    assert result.rollout.metrics["unreadable/Verifier"] == unread


async def test_verdicts_on_a_step_are_compared_with_each_other():
    """One step, valid; verdicts valid and invalid: 1 and 0, mean 0.5, deviation 0.5."""
    arena = scripted_arena("5", "valid", "invalid", "valid", "valid")
    arena.batch_size = 2
    arena.get_batch = lambda: [EpisodeRequest("prove", "2 + 3", group="0")] * 2  # type: ignore[method-assign]
    step = await arena.step()
    verdicts = sorted(c.rollout.advantages["Verifier"] for result in step.results for c in result.children)
    assert verdicts == pytest.approx([-0.5 / 0.5001, 0.0, 0.0, 0.5 / 0.5001])
    assert [result.rollout.advantages["Prover"] for result in step.results] == [0.0, 0.0]


async def test_nobody_judges_what_cannot_be_read():
    result: GenerateResult = await scripted_arena("I can't").run_episode("prove", "2 + 3 + 4")
    assert (result.children, result.rewards, result.rollout.error) == ([], {"Prover": 0.0}, None)


def test_statements_come_from_the_seed_a_group_each():
    def batch(seed: int, **options: object) -> list[EpisodeRequest]:
        arena = ProofVerificationArena(16, 8, **options)
        arena.configure(RunConfig(seed=seed, batch_size=16))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    assert [len({(r.group, r.artifact) for r in first[a : a + 8]}) for a in (0, 8)] == [1, 1]
    assert all(request.artifact.count("+") == 2 for request in first)
    longer = [r.artifact for seed in range(20) for r in batch(seed, terms=5, products=True)]
    assert any("*" in statement for statement in longer)
    assert all(len(statement.split()) == 9 for statement in longer)
