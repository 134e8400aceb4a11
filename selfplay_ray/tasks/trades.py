"""What two players say when they trade, and what a trade changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

PLAYERS = ("Alice", "Bob")
MOVE = re.compile(
    r"\boffer: *(\d{1,3}) +([a-z]+?)s? +for +(\d{1,3}) +([a-z]+?)s?\b"
    r"|(?<!n't )(?<!n’t )(?<!not )(?<!never )\b(?-i:(ACCEPT|Accept|REJECT|Reject))\b",
    re.ASCII | re.IGNORECASE,
)

Inventory = dict[str, int]


class Offer(NamedTuple):
    """``player`` gives so much of ``what`` and wants ``price`` of ``wanted``."""

    player: str
    gives: int
    what: str
    price: int
    wanted: str


def other(player: str) -> str:
    return PLAYERS[1 - PLAYERS.index(player)]


def read_move(player: str, text: str) -> Offer | str | None:
    """The last move in ``text``: an offer, "ACCEPT" or "REJECT"; None if there is none.

    An offer is ``OFFER: 2 wood for 1 gold``, in upper or lower case; the other two are written large or at least with a
    large letter, for who talks says "accept" as well. What somebody does *not* accept or reject is no move.
    """
    moves = list(MOVE.finditer(text))
    if not moves:
        return None
    count, what, price, wanted, word = moves[-1].groups()
    return word.upper() if word else Offer(player, int(count), what.lower(), int(price), wanted.lower())


def is_possible(offer: Offer, inventories: Mapping[str, Inventory]) -> bool:
    """Whether both have what would change hands, and something would, so that whoever accepts can always pay."""
    mine, theirs = inventories[offer.player], inventories[other(offer.player)]
    enough = mine.get(offer.what, 0) >= offer.gives > 0 and theirs.get(offer.wanted, 0) >= offer.price > 0
    return enough and offer.what != offer.wanted


def traded(offer: Offer, inventories: Mapping[str, Inventory]) -> dict[str, Inventory]:
    """The inventories after the trade."""
    after = {player: dict(inventory) for player, inventory in inventories.items()}
    for giver, what, count in (
        (offer.player, offer.what, offer.gives),
        (other(offer.player), offer.wanted, offer.price),
    ):
        after[giver][what] -= count
        after[other(giver)][what] = after[other(giver)].get(what, 0) + count
    return after


def worth(inventory: Inventory, values: Mapping[str, int]) -> int:
    return sum(count * values[what] for what, count in inventory.items())
