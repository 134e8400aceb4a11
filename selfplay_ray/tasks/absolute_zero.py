"""Absolute Zero: a Proposer writes programs, Solvers reason about them, and running them says who is right.

Zhao et al. 2025, Absolute Zero: Reinforced Self-play Reasoning with Zero Data. A triplet is a program f, an input x
and the output f(x). Solvers *deduce* the output from program and input, *abduce* an input from program and output,
or *induce* the program from inputs and outputs, of which half are kept to test it with. A Proposer writes program
and input for the first two, and inputs for a program of the buffer for the third; it earns

    1 - mean(solved), and 0 where all or none of its Solvers succeed     (equation 4: what can be learned)

A Solver earns 1 if it is right (equation 5). For both, an answer that can be read but is wrong, or doesn't run, or
doesn't run twice to the same result, is worth -0.5, and one that can't be read -1 (equation 6). Beyond the paper, a
Proposer pays for what others of its batch propose as well, or what is in the buffer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selfplay_ray.arena import Arena
from selfplay_ray.artifacts import Artifact, ArtifactStore
from selfplay_ray.credit import GRPOCredit
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.rubric import Rubric
from selfplay_ray.sandbox import Sandbox, call_function, read_literal
from selfplay_ray.types import EpisodeRequest, Examples, GenerateResult, Role, Rollout

KINDS = ("deduce", "abduce", "induce")
SOLVED, WRONG, UNREADABLE = 1.0, -0.5, -1.0
DUPLICATE_PENALTY = 0.5
PROGRAM = re.compile(r"\s*(def f\(x\):(?:\n .*)+)\s*")
PROPOSAL = re.compile(PROGRAM.pattern + r"\nf\((.{1,100})\)\s*")
PROPOSE = "Write a new function f and one call of it."
INPUTS = 4
SEEDS = ("x + 2", "x * 3", "10 - x", "x * x", "x % 4", "abs(x)", "str(x) + '!'", "x > 5")
"""What the buffer starts with; the paper starts with the identity alone, which a small model gets no further from."""


class Puzzle(NamedTuple):
    """``pairs`` are inputs with the ``repr`` of their outputs; for "induce" every second one is hidden."""

    kind: str
    program: str
    pairs: list[tuple[Any, str]]

    def question(self) -> str:
        given, output = self.pairs[0]
        if self.kind == "deduce":
            return f"{self.program}\nWhat is f({given!r})?"
        if self.kind == "abduce":
            return f"{self.program}\nFor which x is f(x) = {output}?"
        return "\n".join([*(f"f({given!r}) = {output}" for given, output in self.pairs[::2]), "What is f?"])

    def answer(self) -> str:
        given, output = self.pairs[0]
        return {"deduce": output, "abduce": repr(given), "induce": self.program}[self.kind]


def puzzle(kind: str, body: str, inputs: Sequence[int], outputs: Sequence[int]) -> Puzzle:
    """One written by hand."""
    pairs = [(given, repr(output)) for given, output in zip(inputs, outputs, strict=True)]
    return Puzzle(kind, f"def f(x):\n    return {body}", pairs)


EXAMPLES = {
    kind: (
        puzzle(kind, "x + 7", (2, 5, 0, 1), (9, 12, 7, 8)),
        puzzle(kind, "x * 5", (3, 4, 1, 0), (15, 20, 5, 0)),
    )
    for kind in KINDS
}


async def outputs(sandbox: Sandbox, program: str, inputs: Sequence[Any]) -> list[str] | None:
    """The ``repr`` of each output; None unless all are there, and the same in a second process."""
    first, second = [
        await call_function(sandbox, program, "f", [(given,) for given in inputs]) for _ in range(2)
    ]
    return (
        [output for output in first if output is not None] if None not in first and first == second else None
    )


def solver_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Equations 5 and 6."""
    return {"Solver": rollout.extras["reward"]}


def proposer_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Equations 4 and 6."""
    solved = rollout.extras["solved"]
    if solved is None:
        return {"Proposer": WRONG if rollout.extras["readable"] else UNREADABLE}
    return {"Proposer": 0.0 if solved in (0.0, 1.0) else 1 - solved}


class SolveEpisode(Episode):
    rubric = Rubric([solver_reward])

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    async def rollout(self, arena: Arena, artifact: Puzzle, state: EpisodeState) -> EpisodeState:
        shown = [(example.question(), example.answer()) for example in EXAMPLES[artifact.kind]]
        reply = await self.call_model("Solver", artifact.question(), arena, examples=shown)
        state.data["reward"] = await self.judge(artifact, reply.text)
        return state

    async def judge(self, puzzle: Puzzle, text: str) -> float:
        """What an answer is worth, by running it where it must be run."""
        program, answer = puzzle.program, read_literal(text)
        if puzzle.kind == "induce":
            found = PROGRAM.fullmatch(text)
            if found is None:
                return UNREADABLE
            program, pairs = found[1], puzzle.pairs[1::2]
        elif answer is None:
            return UNREADABLE
        elif puzzle.kind == "deduce":
            return SOLVED if repr(answer[0]) == puzzle.pairs[0][1] else WRONG
        else:
            pairs = [(answer[0], puzzle.pairs[0][1])]
        results = await call_function(self.sandbox, program, "f", [(given,) for given, _ in pairs])
        return SOLVED if results == [output for _, output in pairs] else WRONG

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return state.data


class ProposeEpisode(Episode):
    """The artifact is a kind and programs of the buffer: the Proposer's examples, and for "induce" the last as f."""

    rubric = Rubric([proposer_reward])

    def __init__(self, sandbox: Sandbox, n_solver_rollouts: int) -> None:
        self.sandbox, self.n_solver_rollouts = sandbox, n_solver_rollouts

    async def rollout(
        self, arena: Arena, artifact: tuple[str, list[Mapping[str, Any]]], state: EpisodeState
    ) -> EpisodeState:
        kind, known = artifact
        state.data = {"readable": False, "puzzle": None}
        inputs: list[Any] | None = None
        question, shown = self.request(kind, known)
        text = (await self.call_model("Proposer", question, arena, examples=shown)).text
        if kind == "induce":
            program, inputs = known[-1]["program"], inputs_in(text)
        elif (found := PROPOSAL.fullmatch(text)) and (given := read_literal(found[2])):
            program, inputs = found[1], list(given)
        if inputs is not None:
            state.data["readable"] = True
            results = await outputs(self.sandbox, program, inputs)
            if results is not None:
                made = Puzzle(kind, program, list(zip(inputs, results, strict=True)))
                state.data["puzzle"] = made
                state.child_results = await arena.generate_rollouts(
                    [EpisodeRequest("solve", made)] * self.n_solver_rollouts
                )
        return state

    def request(self, kind: str, known: Sequence[Mapping[str, Any]]) -> tuple[str, Examples]:
        """What is asked of the Proposer, and the examples before it."""
        if kind != "induce":
            return PROPOSE, [(PROPOSE, f"{one['program']}\nf({one['input']})") for one in known]
        asked = [f"{one['program']}\nWrite {INPUTS} inputs x." for one in known]
        return asked[-1], [(asked[0], "2, 7, 1, 10"), (asked[1], "5, 3, 8, 20")]

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        rewards = [child.rewards.get("Solver", 0.0) for child in state.child_results]
        solved = sum(reward == SOLVED for reward in rewards) / len(rewards) if rewards else None
        return {**state.data, "solved": solved}


def inputs_in(text: str) -> list[Any] | None:
    """The inputs in a proposal for "induce": as many different literals as are asked for, with commas between."""
    listed = read_literal(f"[{text.strip()}]")
    inputs = listed[0] if listed else []
    return inputs if len(inputs) == INPUTS == len(set(map(repr, inputs))) else None


class AbsoluteZeroArena(Arena):
    """``batch_size`` Proposers a step, a third for each kind of puzzle; the buffer is the store "programs"."""

    def __init__(self, batch_size: int, sandbox: Sandbox, n_solver_rollouts: int = 4, **options: Any) -> None:
        options.setdefault("credit_assigner", GRPOCredit(normalize=True))
        super().__init__(batch_size=batch_size, **options)
        self.add_role(Role("Proposer", max_tokens=40))
        self.add_role(Role("Solver", max_tokens=24))
        self.add_episode("propose", ProposeEpisode(sandbox, n_solver_rollouts))
        self.add_episode("solve", SolveEpisode(sandbox))
        self.add_store("programs", ArtifactStore(max_size=256))
        for number, body in enumerate(SEEDS):
            self.keep(f"def f(x):\n    return {body}", number + 1)

    def keep(self, program: str, given: Any) -> None:
        """Into the buffer, where a program is once, with its latest input."""
        self.stores["programs"].add(Artifact(program, {"program": program, "input": repr(given)}))

    def get_batch(self) -> Sequence[EpisodeRequest]:
        kinds = [KINDS[index % len(KINDS)] for index in range(self.batch_size)]
        return [EpisodeRequest("propose", (kind, self.some_programs()), group=kind) for kind in kinds]

    def some_programs(self) -> list[Mapping[str, Any]]:
        """Three different ones."""
        return self.rng.sample([artifact.data for artifact in self.stores["programs"]], 3)

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        """A Proposer pays for what is in the buffer or what others propose; what is new goes into the buffer."""
        made = {result.rollout.id: result.rollout.extras.get("puzzle") for result in results}
        known = {artifact.id for artifact in self.stores["programs"]}
        for result in results:
            puzzle = made[result.rollout.id]
            if puzzle is None:
                continue
            others = [other for name, other in made.items() if name != result.rollout.id]
            share = sum(puzzle == other for other in others) / max(len(others), 1)
            if puzzle.kind != "induce":
                share = 1.0 if puzzle.program in known else share
                self.keep(puzzle.program, puzzle.pairs[0][0])
            result.rewards["Proposer"] -= DUPLICATE_PENALTY * share
            result.rollout.metrics["duplicates/Proposer"] = share
