"""Rows that are run together: prompts of which keys and values are made, and sequences that are decoded.

What enters goes on with copies of keys and values that are there already; what leaves makes room at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from selfplay_ray.inference.adapters import Adapters
from selfplay_ray.inference.decoding import Decoding, Drawn
from selfplay_ray.inference.forward import Forward, LayerCaches, Logits
from selfplay_ray.inference.requests import TopTokens

Row = tuple[Decoding, LayerCaches]
"""Who is in a batch or enters it, with caches of the tokens it has ``held`` by now."""

ALIKE = 4
"""Rows for each that is run, from which on it is worth it to run one of those that are alike for all: its keys and
values are copied for that."""

PADDED = 2
"""How many times as many tokens may be run as are asked for, for padding."""


class Rows:
    """Decodings, and caches of what each of them holds, row by row."""

    def __init__(self, forward: Forward, adapters: Adapters) -> None:
        self._forward, self._adapters = forward, adapters
        self._decodings: list[Decoding] = []
        self._caches: LayerCaches = []

    def __len__(self) -> int:
        return len(self._decodings)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(int(cache.nbytes) for cache in self._caches)

    def enter(self, entering: Sequence[Row]) -> None:
        """Add rows."""
        if entering:
            growing = [self._forward.growing(caches, decoding.most_tokens) for decoding, caches in entering]
            self._caches = self._forward.join(self._caches, growing)
            # Another list: a draw has this one.
            self._decodings = [*self._decodings, *(decoding for decoding, _ in entering)]

    def leave(self, leaving: Iterable[Decoding]) -> None:
        """Let go of the rows of ``leaving``."""
        left = set(leaving)
        keep = [row for row, decoding in enumerate(self._decodings) if decoding not in left]
        if len(keep) < len(self._decodings):
            self._keep(keep)

    def held(self, decoding: Decoding) -> LayerCaches:
        """The caches of what ``decoding`` holds; to be copied before these rows are run again."""
        row = self._decodings.index(decoding)
        return [cache.extract(row) for cache in self._caches]

    def compact(self) -> None:
        """Give back memory of rows that have left."""
        if self._caches:
            self._forward.compact(self._caches)

    def _keep(self, rows: Sequence[int]) -> None:
        """Let go of all rows but these."""
        self._decodings = [self._decodings[row] for row in rows]
        if not rows:
            self._caches = []
        for cache in self._caches:
            cache.filter(rows)


class Prompts(Rows):
    """Those whose heads are being run."""

    @property
    def left(self) -> int:
        """Tokens that are still to be run."""
        return sum(decoding.left for decoding in self._decodings)

    def run(self, most: int) -> list[Row]:
        """Run the next tokens of every head, no more than ``most`` in all if that is one for each; who has run all of
        it, with its caches, and is to ``leave`` then."""
        if not self._decodings:
            return []
        counts = _shares([decoding.left for decoding in self._decodings], most)
        if self._forward.pads:
            even = max(1, PADDED * most // len(counts))
            counts = [min(count, even) for count in counts]
        self._adapters.select([decoding.adapter for decoding in self._decodings])
        self._forward.prefill(
            [
                decoding.head[decoding.held : decoding.held + count]
                for decoding, count in zip(self._decodings, counts, strict=True)
            ],
            self._caches,
        )
        for decoding, count in zip(self._decodings, counts, strict=True):
            decoding.held += count
        return [(decoding, self.held(decoding)) for decoding in self._decodings if decoding.prefilled]


@dataclass(frozen=True, slots=True)
class Draw:
    """One batched draw: for whom, the tokens int32[B], their logprobs float32[B], and the policy version that drew
    each. ``likeliest`` are the likeliest tokens and their logprobs, [A, K], of the A rows that asked for any."""

    decodings: Sequence[Decoding]
    tokens: mx.array
    logprobs: mx.array
    versions: Sequence[int]
    likeliest: tuple[mx.array, mx.array] | None

    def results(self) -> Iterator[tuple[Decoding, Drawn]]:
        """What was drawn for whom."""
        tokens, logprobs = cast(list[int], self.tokens.tolist()), cast(list[float], self.logprobs.tolist())
        every = zip(tokens, logprobs, self.versions, self._top_tokens(), strict=True)
        return zip(self.decodings, (Drawn(*each) for each in every), strict=True)

    def _top_tokens(self) -> list[TopTokens]:
        """The likeliest tokens of every row, as many as it asked for."""
        if self.likeliest is None:
            return [()] * len(self.decodings)
        tokens = cast(list[list[int]], self.likeliest[0].tolist())
        logprobs = cast(list[list[float]], self.likeliest[1].tolist())
        rows = (tuple(zip(*row, strict=True)) for row in zip(tokens, logprobs, strict=True))
        tops = [decoding.request.top_logprobs for decoding in self.decodings]
        return [next(rows)[:top] if top else () for top in tops]


class DecodeBatch(Rows):
    """Those who draw a token at every step."""

    def __init__(self, forward: Forward, adapters: Adapters) -> None:
        super().__init__(forward, adapters)
        self._last = mx.zeros(0, dtype=mx.int32)  # token of each row, which is run next
        self._ahead: Draw | None = None

    def enter(self, entering: Sequence[Row]) -> None:
        """Add rows, which begin with their prompts' last tokens."""
        super().enter(entering)
        self._begin([decoding for decoding, _ in entering])

    def _begin(self, decodings: Sequence[Decoding]) -> None:
        if decodings:
            last = [decoding.request.prompt_token_ids[-1] for decoding in decodings]
            self._last = mx.concatenate([self._last, mx.array(last, dtype=mx.int32)])

    def enter_from(self, prompts: Prompts, entering: Sequence[Row]) -> None:
        """Add rows, of which some leave ``prompts``. If these are all there are on both sides, nothing is copied."""
        decodings = [decoding for decoding, _ in entering]
        if not self._decodings and decodings == prompts._decodings:
            self._caches, prompts._caches = prompts._caches, []
            self._decodings = decodings
            self._begin(decodings)
        else:
            self.enter(entering)
        prompts.leave(decodings)

    def step(self) -> list[tuple[Decoding, Drawn]]:
        """Draw the next token of every row; what was drawn, for rows that are still there. Where the forward pass is
        lazy that is what was drawn in the step before, which is read while this one is computed."""
        draw = self._draw()
        if self._forward.lazy:
            draw, self._ahead = self._ahead, draw
        if draw is None:
            return []
        there = set(self._decodings)
        return [(decoding, drawn) for decoding, drawn in draw.results() if decoding in there]

    def _draw(self) -> Draw | None:
        """The next draw, if any row has one coming; rows that have not, but of which nobody has read yet that they
        ended, are run with the others."""
        if all(decoding.drawn >= decoding.request.max_tokens for decoding in self._decodings):
            return None
        versions = [decoding.adapter.version for decoding in self._decodings]
        rows = [decoding.next_draw() for decoding in self._decodings]
        logits = self._logits()
        tokens, logprobs = logits.draw(rows)
        asking = [index for index, row in enumerate(rows) if row.top]
        likeliest = logits.likeliest(asking, [rows[index] for index in asking]) if asking else None
        mx.async_eval(tokens, logprobs, *(likeliest or ()))
        for decoding in self._decodings:
            decoding.drawn += 1
            decoding.held += 1
        self._last = tokens
        return Draw(self._decodings, tokens, logprobs, versions, likeliest)

    def _logits(self) -> Logits:
        adapters = [decoding.adapter for decoding in self._decodings]
        first, kinds = _kinds(self._decodings)
        if len(first) * ALIKE <= len(kinds) and self._forward.shares(self._caches):
            self._adapters.select([adapters[row] for row in first])
            return self._forward.decode_one_of_each(self._last, self._caches, first, kinds)
        self._adapters.select(adapters)
        return self._forward.decode(self._last, self._caches)

    def _keep(self, rows: Sequence[int]) -> None:
        super()._keep(rows)
        self._last = self._last[mx.array(list(rows), dtype=mx.int32)]


def _shares(wanted: Sequence[int], most: int) -> list[int]:
    """How many of those it ``wanted`` each gets of ``most``: one at least, and as many as others that want more."""
    shares = [0] * len(wanted)
    for number, index in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        shares[index] = min(wanted[index], max(1, most // (len(wanted) - number)))
        most -= shares[index]
    return shares


def _kinds(decodings: Sequence[Decoding]) -> tuple[list[int], list[int]]:
    """Rows that the next forward pass would compute alike: the first row of each kind, and each row's kind as an index
    into these. Once a token was drawn no two rows are alike."""
    numbers: dict[object, int] = {}
    first: list[int] = []
    kinds: list[int] = []
    for row, decoding in enumerate(decodings):
        kind = decoding.kind
        number = numbers.setdefault(row if kind is None else kind, len(numbers))
        if number == len(first):
            first.append(row)
        kinds.append(number)
    return first, kinds
