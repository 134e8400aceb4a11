"""Negotiation: two players trade resources, and neither knows what they are worth to the other.

A move is an offer, ``ACCEPT`` or ``REJECT`` (:mod:`selfplay_ray.tasks.trades` reads them); around it a player may say
what it likes. An offer stands until it is accepted, which is the *deal* that ends the game, rejected, or replaced by
another. Who rejects where no offer stands leaves: *no deal*. A move that can't be read or isn't legal is a *forfeit*.
At the limit on turns the game is *truncated*, after its last move was played.

A player's reward is what the deal changed of its inventory's value, as a share of what all there is would be worth to
it. It is no zero-sum game: trades that are good for both are what it is about. Credit is role-conditioned (Liu et al.
2025, SPIRAL), for the values of one player are the game of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.credit import RAECredit
from selfplay_ray.episode import ChatEpisode, EpisodeState
from selfplay_ray.rubric import RewardFn, Rubric
from selfplay_ray.tasks.trades import PLAYERS, Inventory, Offer, is_possible, other, read_move, traded, worth
from selfplay_ray.types import EpisodeRequest, Examples, Role, Rollout

RESOURCES = ("wood", "stone", "gold")
FORFEIT = -0.5
EXAMPLES = (
    (
        "You have 4 wood, 1 stone. Bob has 3 gold. To you wood is worth 1, stone 2, gold 3. Your move?",
        "Offer: 2 wood for 1 gold",
    ),
    ("Bob: I need stone. Offer: 2 gold for 1 stone\n\nYour move?", "Fine with me. Accept"),
    (
        "You have 2 stone, 3 gold. Bob has 4 wood. To you wood is worth 4, stone 1, gold 2. Your move?",
        "Offer: 1 stone for 1 wood",
    ),
)
ENDINGS = ("deal", "no deal", "forfeited", "truncated")


def gain(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """The change of each inventory's value, as a share of what everything there is would be worth to its owner."""
    before, values = rollout.artifact["inventories"], rollout.artifact["values"]
    gains = {}
    for player in PLAYERS:
        everything = sum(worth(before[owner], values[player]) for owner in PLAYERS)
        change = worth(rollout.extras["inventories"][player], values[player]) - worth(
            before[player], values[player]
        )
        gains[player] = change / everything
    return gains


def forfeit(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 for whom an illegal or unreadable move ended it; only that player pays."""
    return {player: float(rollout.extras["forfeited_by"] == player) for player in PLAYERS}


def unreadable(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 for whom an answer without a move ended it."""
    return {player: float(rollout.extras["unreadable_by"] == player) for player in PLAYERS}


def ended_in(ending: str) -> RewardFn:
    """1 where it ended like that: as a metric's mean, how often it does."""

    def count(rollout: Rollout, arena: Arena) -> dict[str, float]:
        return dict.fromkeys(PLAYERS, float(rollout.extras["ending"] == ending))

    count.__name__ = ending.replace(" ", "_")
    return count


class NegotiationEpisode(ChatEpisode):
    """The artifact holds ``inventories`` and hidden ``values``, by player and resource, and who is ``first``."""

    rubric = Rubric(
        [gain, forfeit, unreadable, *map(ended_in, ENDINGS)], [1.0, FORFEIT, 0.0, *[0.0] * len(ENDINGS)]
    )

    def init_state(self, state: EpisodeState, artifact: Mapping[str, Any]) -> EpisodeState:
        state.data = {"inventories": artifact["inventories"], "offer": None, "ending": "truncated"}
        return state

    def get_initial_role(self, artifact: Mapping[str, Any], state: EpisodeState) -> str:
        return str(artifact["first"])

    def get_initial_prompt(self, arena: Arena, artifact: Any, state: EpisodeState) -> str:
        return ""

    def get_next_role(self, artifact: Any, state: EpisodeState) -> str:
        return other(state.current_role)

    def get_examples(self, role_id: str, artifact: Any, state: EpisodeState) -> Examples:
        return [(asked.replace("Bob", other(role_id)), move) for asked, move in EXAMPLES]

    def get_observation(
        self, role_id: str, arena: Arena, artifact: Mapping[str, Any], state: EpisodeState
    ) -> str:
        """What a player has and what it is worth to it, before its first move."""
        if any(step.role_id == role_id for step in state.trajectory):
            return "Your move?"
        has = artifact["inventories"]
        values = ", ".join(f"{what} {value}" for what, value in artifact["values"][role_id].items())
        return (
            f"You have {listed(has[role_id])}. {other(role_id)} has {listed(has[other(role_id)])}. "
            f"To you {values.replace(' ', ' is worth ', 1)}. Your move?"
        )

    async def env_response(self, arena: Arena, artifact: Any, state: EpisodeState) -> str:
        """Play the move that was just said; it counts also where it is the last that is allowed."""
        player, data = state.current_role, state.data
        move, standing = read_move(player, state.last_completion_text), data["offer"]
        if isinstance(move, Offer) and is_possible(move, data["inventories"]):
            data["offer"] = move
        elif move == "ACCEPT" and standing is not None:
            data["inventories"] = traded(standing, data["inventories"])
            data["ending"] = "deal"
        elif move == "REJECT":
            data["offer"] = None
            data["ending"] = "truncated" if standing is not None else "no deal"
        else:
            data.update(ending="forfeited", forfeited_by=player, unreadable_by=None if move else player)
        state.done = data["ending"] != "truncated"
        return ""

    def get_extras(self, state: EpisodeState) -> dict[str, Any]:
        return {
            key: state.data.get(key) for key in ("inventories", "ending", "forfeited_by", "unreadable_by")
        }


def listed(inventory: Inventory) -> str:
    return ", ".join(f"{count} {what}" for what, count in inventory.items() if count) or "nothing"


class NegotiationArena(Arena):
    """``batch_size`` negotiations a step, each with goods and values of its own; who begins is drawn."""

    def __init__(
        self,
        batch_size: int,
        *,
        max_turns: int = 6,
        rae_decay: float = 0.95,
        temperature: float = 0.7,
        max_tokens: int = 24,
        **options: Any,
    ) -> None:
        options.setdefault("credit_assigner", RAECredit(rae_decay))
        super().__init__(batch_size=batch_size, **options)
        for player in PLAYERS:
            self.add_role(Role(player, "", temperature, max_tokens))
        self.add_episode("negotiation", NegotiationEpisode(max_turns))

    def get_batch(self) -> Sequence[EpisodeRequest]:
        return [EpisodeRequest("negotiation", self.deal()) for _ in range(self.batch_size)]

    def deal(self) -> dict[str, Any]:
        """Each has some of everything; what is worth most to whom is drawn apart."""

        def each(draw: Callable[[], int]) -> dict[str, Inventory]:
            return {player: {what: draw() for what in RESOURCES} for player in PLAYERS}

        return {
            "inventories": each(lambda: self.rng.randint(1, 4)),
            "values": each(lambda: self.rng.randint(1, 5)),
            "first": self.rng.choice(PLAYERS),
        }
