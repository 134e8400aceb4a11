"""A task in fifty lines: three prizes, two bidders, sealed bids, and a budget that has to last.

python jobs/train_bidding.py --num-steps 40
"""

import asyncio
import re
from collections.abc import Mapping, Sequence

from selfplay_ray import Arena, Episode, EpisodeState, GroupedArena, Role, Rollout, Rubric, RunConfig
from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config_sources import load_config

BIDDERS, BUDGET = ("Ann", "Ben"), 10
PROMPT = "A prize is worth {}. You have {} coins. Answer with your bid, one number."


def ahead(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """By how much a bidder's prizes are worth more than the other's, as a share of all: zero-sum."""
    share = (rollout.extras["won"]["Ann"] - rollout.extras["won"]["Ben"]) / sum(rollout.artifact)
    return {"Ann": share, "Ben": -share}


def void(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """The share of a bidder's bids that were no number, or more than it had left."""
    return {name: count / len(rollout.artifact) for name, count in rollout.extras["void"].items()}


class BiddingEpisode(Episode):
    rubric = Rubric([ahead, void], [1.0, -0.5])

    async def rollout(self, arena: Arena, artifact: Sequence[int], state: EpisodeState) -> EpisodeState:
        left, won, voided = (dict.fromkeys(BIDDERS, start) for start in (BUDGET, 0, 0))
        state.data = {"won": won, "void": voided}
        for prize in artifact:
            asked = [self.call_model(name, PROMPT.format(prize, left[name]), arena) for name in BIDDERS]
            found = [re.search(r"\d+", reply.text) for reply in await asyncio.gather(*asked)]
            bids = {name: int(bid[0]) if bid else -1 for name, bid in zip(BIDDERS, found, strict=True)}
            for name in (name for name in BIDDERS if not 0 <= bids[name] <= left[name]):
                voided[name], bids[name] = voided[name] + 1, 0
            if bids["Ann"] != bids["Ben"]:  # what both bid the same for stays where it is
                winner = max(BIDDERS, key=bids.__getitem__)
                won[winner], left[winner] = won[winner] + prize, left[winner] - bids[winner]
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, dict[str, int]]:
        return state.data


class BiddingArena(GroupedArena):
    def draw_artifact(self) -> list[int]:
        return self.rng.choices(range(1, 10), k=3)


def make_arena(config: RunConfig) -> BiddingArena:
    # Four games about the same prizes, which are compared with each other.
    arena = BiddingArena("bidding", config.batch_size, group_size=4)
    for name in BIDDERS:
        arena.add_role(Role(name, max_tokens=8))
    arena.add_episode("bidding", BiddingEpisode())
    return arena


def main(argv: Sequence[str]) -> int:
    config = load_config(RunConfig, argv, "selfplay train bidding")
    train(make_arena(config), config, "bidding")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
