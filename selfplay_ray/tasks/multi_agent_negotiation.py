"""Multi-agent negotiation: some agents split some items, and each knows only what they are worth to itself.

In turn one proposes who gets which item, as letters in the items' order (``A B A C``), and the others vote, none of
them knowing how another does. A majority, the proposer's own vote counted, is a *deal* and ends it. A proposal that
can't be read is a *forfeit* of the turn, a vote that can't be read a no. When everybody's turns are over the
negotiation is *truncated*, and nobody gets anything.

A reward is the agent's own share, of what all items are worth to it, and for all alike whether the split is *Pareto
optimal*: whether no other is better for one and worse for none. That is computed, by looking at every other split.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import Examples, Role, Rollout

ITEMS = ("apple", "bread", "cheese", "date", "egg", "fig")
AGENTS = "ABCDE"
VOTE = re.compile(r"\b(YES|NO)\b")
UNREADABLE = -0.5
TEMPERATURE = 0.7
"""Below 1, for small models lose count of letters."""

Values = Mapping[str, Sequence[int]]
"""What each item is worth, by agent."""
Split = Sequence[str]
"""Who gets each item."""


def read_split(text: str, agents: Sequence[str], items: int) -> list[str] | None:
    """The split that ``text`` proposes: just as many letters of agents as there are items; the last one, if several."""
    letter = f"[{''.join(agents)}]"
    run = re.compile(rf"(?<![A-Z] )\b{letter}(?: {letter}){{{items - 1}}}\b(?! [A-Z]\b)")
    found = run.findall(text.replace(",", " ").replace("  ", " "))
    return found[-1].split() if found else None


def read_vote(text: str) -> bool | None:
    """Whether ``text`` agrees: its last YES or NO."""
    said = VOTE.findall(text)
    return said[-1] == "YES" if said else None


def worth(agent: str, split: Split, values: Values) -> int:
    return sum(value for owner, value in zip(split, values[agent], strict=True) if owner == agent)


def is_pareto_optimal(split: Split, values: Values) -> bool:
    """Whether no other split is worth more to one and less to none, of all that there are."""
    now = [worth(agent, split, values) for agent in values]
    for other in itertools.product(values, repeat=len(split)):
        then = [worth(agent, other, values) for agent in values]
        if then != now and all(after >= before for after, before in zip(then, now, strict=True)):
            return False
    return True


def own_share(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """What an agent got, of what all the items are worth to it; nothing without a deal."""
    split, values = rollout.extras["split"], rollout.artifact["values"]
    return {
        role_of(agent): worth(agent, split, values) / sum(values[agent]) if split else 0.0 for agent in values
    }


def pareto(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 for everybody if the deal is Pareto optimal; 0 for another, and for none."""
    split, values = rollout.extras["split"], rollout.artifact["values"]
    optimal = split is not None and is_pareto_optimal(split, values)
    return {role_of(agent): float(optimal) for agent in values}


def unreadable(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """The share of an agent's answers that couldn't be read."""
    said = rollout.extras["said"]
    return {role_of(agent): failed / count for agent, (count, failed) in said.items() if count}


def counts(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Nothing for anybody; how often there was a deal, a limit reached, a turn forfeited."""
    rollout.metrics["deal"] = float(rollout.extras["split"] is not None)
    rollout.metrics["truncated"] = float(rollout.extras["split"] is None)
    rollout.metrics["forfeited_turns"] = float(rollout.extras["forfeits"])
    return {}


def role_of(agent: str) -> str:
    return f"Agent {agent}"


class MultiAgentNegotiationEpisode(Episode):
    """The artifact holds the ``values`` by agent, and the ``order`` of proposers."""

    def __init__(self, rounds: int, pareto_weight: float) -> None:
        self.rounds = rounds
        self.rubric = Rubric([own_share, pareto, unreadable, counts], [1.0, pareto_weight, UNREADABLE, 0.0])

    async def rollout(self, arena: Arena, artifact: Mapping[str, Any], state: EpisodeState) -> EpisodeState:
        agents = list(artifact["values"])
        state.data = {"split": None, "forfeits": 0, "said": {agent: [0, 0] for agent in agents}}
        for turn in range(self.rounds):
            proposer = artifact["order"][turn % len(agents)]
            split = await self._propose(arena, proposer, artifact["values"], state)
            if split is None:
                state.data["forfeits"] += 1
                continue
            voters = [agent for agent in agents if agent != proposer]
            votes = await asyncio.gather(*(self._vote(arena, v, split, artifact, state) for v in voters))
            if 2 * (1 + sum(votes)) > len(agents):
                state.data["split"] = split
                return state
        state.truncated = True
        return state

    async def _propose(
        self, arena: Arena, agent: str, values: Values, state: EpisodeState
    ) -> list[str] | None:
        agents, items = list(values), len(values[agent])
        shown = proposals(agent, agents, items)
        said = await self.call_model(role_of(agent), asked(agent, values[agent]), arena, examples=shown)
        split = read_split(said.text, agents, items)
        _note(state, agent, split is not None)
        return split

    async def _vote(
        self, arena: Arena, agent: str, split: Split, artifact: Mapping[str, Any], state: EpisodeState
    ) -> bool:
        offered = offer(agent, split, artifact["values"][agent])
        vote = read_vote((await self.call_model(role_of(agent), offered, arena, examples=VOTES)).text)
        _note(state, agent, vote is not None)
        return bool(vote)

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return state.data


def _note(state: EpisodeState, agent: str, readable: bool) -> None:
    said = state.data["said"][agent]
    said[0] += 1
    said[1] += not readable


def asked(agent: str, values: Sequence[int]) -> str:
    """What a proposer reads."""
    worths = ", ".join(f"{item} {value}" for item, value in zip(ITEMS, values, strict=False))
    return f"You are {agent}. Worth to you: {worths}. Who gets what?"


def offer(agent: str, split: Split, values: Sequence[int]) -> str:
    """What a voter reads."""
    mine = [item for item, owner in zip(ITEMS, split, strict=False) if owner == agent]
    got = sum(value for value, owner in zip(values, split, strict=True) if owner == agent)
    return f"You get {' and '.join(mine) or 'nothing'}: {got} of {sum(values)}. YES or NO?"


def proposals(agent: str, agents: Sequence[str], items: int) -> Examples:
    """Two examples of how to propose: an agent takes what it likes best, the others have the rest in turn."""
    examples = []
    for shift in (1, 2):
        values = worths(items)[shift:] + worths(items)[:shift]
        others = itertools.cycle([other for other in agents if other != agent][::-1])
        split = [agent if value == max(values) else next(others) for value in values]
        examples.append((asked(agent, values), " ".join(split)))
    return examples


VOTES = (
    ("You get bread and date: 7 of 10. YES or NO?", "YES"),
    ("You get nothing: 0 of 10. YES or NO?", "NO"),
)


def worths(items: int) -> list[int]:
    """0, 1, 3, 6, …: what items are worth to everybody, each in an order of its own."""
    return [index * (index + 1) // 2 for index in range(items)]


class MultiAgentNegotiationArena(GroupedArena):
    """``batch_size`` negotiations a step, ``group_size`` about the same values, which are compared agent by agent."""

    def __init__(
        self,
        batch_size: int,
        *,
        agents: int = 3,
        items: int = 4,
        rounds: int = 3,
        pareto_weight: float = 0.5,
        group_size: int = 4,
        **options: Any,
    ) -> None:
        super().__init__("split", batch_size, group_size, **options)
        self.agents, self.items = AGENTS[:agents], items
        for agent in self.agents:
            self.add_role(Role(role_of(agent), temperature=TEMPERATURE, max_tokens=2 * items + 2))
        self.add_episode("split", MultiAgentNegotiationEpisode(rounds, pareto_weight))

    def draw_artifact(self) -> dict[str, Any]:
        """What is worth most to whom, and who proposes when."""
        values = {agent: self.rng.sample(worths(self.items), self.items) for agent in self.agents}
        return {"values": values, "order": self.rng.sample(self.agents, len(self.agents))}

    def describe(self, artifact: Mapping[str, Any]) -> str:
        return ", ".join(f"{agent} {values}" for agent, values in artifact["values"].items())
