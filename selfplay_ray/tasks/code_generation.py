"""Write a function to a specification; tests that the writer doesn't see say how well.

The reward is the pass rate (Le et al. 2022, CodeRL, and many since): the share of test inputs for which the function,
run in a sandbox, returns what our own does. A function that returns something for an input has a little for that,
so that a small model has somewhere to start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.rubric import Rubric
from selfplay_ray.sandbox import Sandbox, call_function
from selfplay_ray.types import Role, Rollout

RETURNS = 0.2  # the weight of returning anything, beside 1 for returning what is right
NUMBERS: Mapping[str, Callable[[int, int], object]] = {
    "the sum of a and b": lambda a, b: a + b,
    "a minus b": lambda a, b: a - b,
    "the product of a and b": lambda a, b: a * b,
    "the larger of a and b": max,
    "the smaller of a and b": min,
    "the distance between a and b": lambda a, b: abs(a - b),
    "True if a is less than b, else False": lambda a, b: a < b,
    "the square of a, plus b": lambda a, b: a * a + b,
    "the sum of a and twice b": lambda a, b: a + 2 * b,
    "a list of a and b": lambda a, b: [a, b],
}
LISTS: Mapping[str, Callable[[list[int]], object]] = {
    "the sum of the list a": sum,
    "the length of the list a": len,
    "the largest number in the list a": max,
    "the first element of the list a": lambda a: a[0],
    "the last element of the list a": lambda a: a[-1],
    "the list a reversed": lambda a: a[::-1],
    "the list a sorted": sorted,
    "the list a without its first element": lambda a: a[1:],
    "the even numbers in the list a": lambda a: [n for n in a if n % 2 == 0],
    "the list a with each number doubled": lambda a: [2 * n for n in a],
}
EXAMPLES = (
    ("f(a, b)", "a divided by b, rounded down", "return a // b"),
    ("f(a)", "the smallest number in the list a", "return min(a)"),
)


class Specification(NamedTuple):
    """What is asked for, and the tests: ``calls`` are arguments, ``wanted`` the ``repr`` of the right results."""

    signature: str
    returns: str
    calls: list[list[Any]]
    wanted: list[str]


def request(signature: str, returns: str) -> str:
    return f"Write the Python function {signature}, which returns {returns}."


def code_in(text: str) -> str:
    """The code in an answer: what stands between the first fences, or all of it."""
    fenced = text.split("```")
    return fenced[1].removeprefix("python") if len(fenced) > 1 else text


def pass_rate(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """The share of test inputs with the right result."""
    wanted = Specification(*rollout.artifact).wanted
    right = sum(got == want for got, want in zip(rollout.extras["results"], wanted, strict=True))
    return {"Generator": right / len(wanted)}


def returns(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """The share of test inputs with any result."""
    results = rollout.extras["results"]
    return {"Generator": sum(result is not None for result in results) / len(results)}


class WriteFunctionEpisode(Episode):
    """The function is asked for once, and run on every test input, in a process of its own."""

    rubric = Rubric([pass_rate, returns], [1.0, RETURNS])

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    async def rollout(self, arena: Arena, artifact: Sequence[Any], state: EpisodeState) -> EpisodeState:
        specification = Specification(*artifact)
        shown = [
            (request(signature, said), f"def {signature}:\n    {body}") for signature, said, body in EXAMPLES
        ]
        asked = request(specification.signature, specification.returns)
        reply = await self.call_model("Generator", asked, arena, examples=shown)
        state.data["results"] = await call_function(
            self.sandbox, code_in(reply.text), "f", specification.calls
        )
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return {"results": state.data["results"]}


class CodeGenerationArena(GroupedArena):
    """``batch_size`` functions a step, ``group_size`` for each specification, which has ``n_tests`` test inputs."""

    def __init__(
        self, batch_size: int, sandbox: Sandbox, group_size: int = 8, n_tests: int = 4, **options: Any
    ) -> None:
        super().__init__("write", batch_size, group_size, **options)
        self.n_tests = n_tests
        self.add_role(Role("Generator", max_tokens=40))
        self.add_episode("write", WriteFunctionEpisode(sandbox))

    def draw_artifact(self) -> list[Any]:
        return list(self.specification())

    def describe(self, artifact: Sequence[Any]) -> str:
        return Specification(*artifact).returns

    def specification(self) -> Specification:
        """One of two numbers or of a list, with test inputs drawn anew."""
        said = self.rng.choice([*NUMBERS, *LISTS])
        if said in NUMBERS:
            pairs = [[self.number(), self.number()] for _ in range(self.n_tests)]
            return Specification("f(a, b)", said, pairs, [repr(NUMBERS[said](a, b)) for a, b in pairs])
        lists = [[self.number() for _ in range(self.rng.randint(2, 6))] for _ in range(self.n_tests)]
        return Specification("f(a)", said, [[a] for a in lists], [repr(LISTS[said](a)) for a in lists])

    def number(self) -> int:
        return self.rng.randint(-99, 99)
