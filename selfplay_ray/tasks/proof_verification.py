"""A Prover works a sum out line by line, a Verifier judges every line, and a checker knows.

A proof of what 2 + 3 * 4 is rewrites one operation a line: "2 + 12", "14". Both are rewarded by the checker, not by
each other (step by step, as in Lightman et al. 2023, Let's Verify Step by Step, but with labels that are computed).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.judging.grammar import read_choice
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, Role, Rollout

LINE = re.compile(r"=?\s*(\d{1,6}(?:\s*[+*]\s*\d{1,6})*)\s*\.?", re.ASCII)
TOKEN = re.compile(r"\d+|[+*]", re.ASCII)
MOST_LINES = 8
SHAPE, VALID, COMPLETE = 0.2, 0.4, 0.4  # what each part of a proof is worth at most
PROVER_EXAMPLES = (("Work out: 1 + 2 + 4", "= 3 + 4\n= 7"), ("Work out: 5 + 2 + 1", "= 7 + 1\n= 8"))
VERIFIER_EXAMPLES = (
    ("1 + 2 + 4 = 3 + 4", "valid"),
    ("5 + 3 = 9", "invalid"),
    ("2 + 6 + 1 = 5 + 1", "invalid"),
    ("4 + 2 = 6", "valid"),
)


def rewritings(expression: str) -> list[str]:
    """What one operation less can make of ``expression``: multiplication before addition."""
    tokens = TOKEN.findall(expression)
    made = []
    for place in range(1, len(tokens), 2):
        beside = (*tokens[place - 2 : place - 1], *tokens[place + 2 : place + 3])
        if tokens[place] == "+" and "*" in beside:
            continue
        left, right = int(tokens[place - 1]), int(tokens[place + 1])
        value = left + right if tokens[place] == "+" else left * right
        made.append(" ".join([*tokens[: place - 1], str(value), *tokens[place + 2 :]]))
    return made


def read_proof(text: str) -> list[str]:
    """The lines of ``text`` as expressions, up to the first that is none, which is "" and valid nowhere."""
    lines: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines()[:MOST_LINES])):
        found = LINE.fullmatch(line)
        tokens = TOKEN.findall(found[1]) if found else []
        lines.append(" ".join(token.lstrip("0") or "0" for token in tokens))
        if not found:
            break
    return lines


def steps_of(statement: str, proof: Sequence[str]) -> list[tuple[str, str]]:
    """What each line was, and what it became."""
    return list(zip([statement, *proof], proof, strict=False))


def valid_steps(statement: str, proof: Sequence[str]) -> int:
    """How many steps are valid before the first that isn't."""
    steps = steps_of(statement, proof)
    return next((i for i, (old, new) in enumerate(steps) if new not in rewritings(old)), len(steps))


def is_complete(statement: str, proof: Sequence[str]) -> bool:
    """Whether ``proof`` is valid, ends with a number, and says nothing after it."""
    return bool(proof) and proof[-1].isdigit() and valid_steps(statement, proof) == len(proof)


def shaped_steps(statement: str, proof: Sequence[str]) -> int:
    """How many steps have one operation less, whatever their numbers, before the first that hasn't."""
    steps = steps_of(statement, proof)
    shaped = [new != "" and operations(new) == operations(old) - 1 for old, new in steps]
    return [*shaped, False].index(False)


def operations(expression: str) -> int:
    return len(TOKEN.findall(expression)) // 2


def prover_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Graded, so that a small model has somewhere to start: 0.2 for the share of its steps that have the form of one,
    0.4 for the share that are valid, 0.4 for a proof that is complete."""
    statement, proof = rollout.artifact, rollout.extras["proof"]
    steps = SHAPE * shaped_steps(statement, proof) + VALID * valid_steps(statement, proof)
    return {"Prover": steps / operations(statement) + COMPLETE * is_complete(statement, proof)}


def complete(rollout: Rollout, arena: Arena) -> dict[str, float]:
    return {"Prover": float(is_complete(rollout.artifact, rollout.extras["proof"]))}


def verifier_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 for a verdict that is true of the step; 0 for another, or for none that can be read."""
    old, new = rollout.artifact
    truth = "valid" if new in rewritings(old) else "invalid"
    return {"Verifier": float(rollout.extras["verdict"] == truth)}


def unreadable(rollout: Rollout, arena: Arena) -> dict[str, float]:
    return {"Verifier": float(rollout.extras["verdict"] is None)}


class VerifyEpisode(Episode):
    """One step, from one expression to the next."""

    rubric = Rubric([verifier_reward, unreadable], [1.0, 0.0])

    async def rollout(self, arena: Arena, artifact: Sequence[str], state: EpisodeState) -> EpisodeState:
        old, new = artifact
        await self.call_model("Verifier", f"{old} = {new}", arena, examples=VERIFIER_EXAMPLES)
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return {"verdict": read_choice(state.last_completion_text, ["valid", "invalid"])}


class ProveEpisode(Episode):
    """Verdicts on one step are compared with each other, not with those on another step."""

    rubric = Rubric([prover_reward, complete], [1.0, 0.0])

    def __init__(self, verdicts: int) -> None:
        self.verdicts = verdicts

    async def rollout(self, arena: Arena, artifact: str, state: EpisodeState) -> EpisodeState:
        reply = await self.call_model("Prover", f"Work out: {artifact}", arena, examples=PROVER_EXAMPLES)
        proof = read_proof(reply.text)
        state.data["proof"] = proof
        steps = [step for step in steps_of(artifact, proof) if step[1]]
        state.child_results = await arena.generate_rollouts(
            [
                EpisodeRequest("verify", [old, new], group=f"step-{number}")
                for number, (old, new) in enumerate(steps)
                for _ in range(self.verdicts)
            ]
        )
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return {"proof": state.data["proof"]}


class ProofVerificationArena(GroupedArena):
    """``batch_size`` proofs a step, ``group_size`` of each statement, ``verdicts`` on each of their steps. Statements
    are of ``terms`` numbers, and multiply every fourth time if ``products``."""

    def __init__(
        self,
        batch_size: int,
        group_size: int = 8,
        *,
        verdicts: int = 3,
        terms: int = 3,
        products: bool = False,
        **options: Any,
    ) -> None:
        super().__init__("prove", batch_size, group_size, **options)
        self.terms = terms
        self.symbols = "+++*" if products else "+"
        self.add_role(Role("Prover", max_tokens=8 * terms))
        self.add_role(Role("Verifier", max_tokens=6))
        self.add_episode("prove", ProveEpisode(verdicts))
        self.add_episode("verify", VerifyEpisode())

    def draw_artifact(self) -> str:
        """A statement: something to work out."""
        text = str(self.rng.randint(1, 9))
        for _ in range(self.terms - 1):
            text += f" {self.rng.choice(self.symbols)} {self.rng.randint(1, 9)}"
        return text
