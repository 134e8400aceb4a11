"""What each row of a decoding batch carries besides keys and values, and the model that reads it.

mlx-lm's ``BatchGenerator`` merges, filters and extends a list of caches, one for each layer. A ``RowState`` at the
end of that list is carried along like one more, and says at every step whose rows these are, in their order.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx

from selfplay_ray.inference.adapters import Adapter, Adapters
from selfplay_ray.inference.forward import Forward, Logits
from selfplay_ray.inference.requests import TopTokens
from selfplay_ray.inference.sampling import SamplingRow


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence: the ``ticket`` the engine knows it by, who speaks, and how the tokens are drawn.

    None of ``stop_token_ids`` is drawn among the first ``min_tokens``. Rows of the same ``kind`` have the same prompt
    and policy; None is of a kind of its own. After ``ends_after`` tokens nothing more is asked of the row.
    """

    ticket: int
    adapter: Adapter
    seed: int
    temperature: float
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    top: int = 0
    kind: Hashable = None
    ends_after: int | None = None

    def __deepcopy__(self, memo: object) -> Row:
        """Itself: BatchGenerator copies caches deeply, and a copy of the adapter would never change its weights."""
        return self

    def at(self, position: int) -> SamplingRow:
        """How its token number ``position`` is drawn."""
        banned = self.stop_token_ids if position < self.min_tokens else ()
        return SamplingRow(self.seed, self.temperature, position, banned, self.top)


@dataclass(slots=True)
class RowState:
    """The rows of a batch, and how many tokens were drawn for each; speaks the protocol of mlx-lm's caches."""

    rows: list[Row]
    drawn: list[int]

    @classmethod
    def of(cls, row: Row) -> RowState:
        """The state of a sequence of which nothing was drawn yet."""
        return cls([row], [0])

    def advance(self) -> list[SamplingRow]:
        """How the next token of every row is drawn; counts it as drawn."""
        rows = zip(self.rows, self.drawn, strict=True)
        now = [row.at(position) for row, position in rows]
        self.drawn = [position + 1 for position in self.drawn]
        return now

    @property
    def ended(self) -> bool:
        """Whether nothing more is asked of any row."""
        rows = zip(self.rows, self.drawn, strict=True)
        return all(row.ends_after is not None and drawn >= row.ends_after for row, drawn in rows)

    def kinds(self) -> tuple[list[int], list[int]]:
        """Rows that the next forward pass would compute alike: the first row of each kind, and each row's kind as
        an index into these. Once a token was drawn no two rows are alike."""
        numbers: dict[object, int] = {}
        first: list[int] = []
        kinds: list[int] = []
        for index, (row, drawn) in enumerate(zip(self.rows, self.drawn, strict=True)):
            alone = row.kind is None or drawn > 0
            kind = numbers.setdefault(index if alone else (row.kind,), len(numbers))
            if kind == len(first):
                first.append(index)
            kinds.append(kind)
        return first, kinds

    @classmethod
    def merge(cls, states: Sequence[RowState]) -> RowState:
        return cls([row for s in states for row in s.rows], [count for s in states for count in s.drawn])

    def filter(self, keep: Sequence[int]) -> None:
        self.rows = [self.rows[index] for index in keep]
        self.drawn = [self.drawn[index] for index in keep]

    def extend(self, other: RowState) -> None:
        self.rows = [*self.rows, *other.rows]
        self.drawn = [*self.drawn, *other.drawn]

    def extract(self, index: int) -> RowState:
        return RowState([self.rows[index]], [self.drawn[index]])

    def prepare(self, **_padding: object) -> None:
        """Padding concerns keys and values only."""

    def finalize(self) -> None:
        """Padding concerns keys and values only."""

    @property
    def state(self) -> tuple[()]:
        """No arrays to evaluate."""
        return ()

    @property
    def nbytes(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Draw:
    """One batched draw: whose rows (by ticket), their logprobs float32[B], and the policy version that drew each.

    ``tops`` are how many of the likeliest tokens each row asked to be told of; ``likeliest`` are those and their
    logprobs, [A, K], of the A rows that asked for any.
    """

    tickets: tuple[int, ...]
    logprobs: mx.array
    versions: tuple[int, ...]
    tops: tuple[int, ...] = ()
    likeliest: tuple[mx.array, mx.array] | None = None

    def top_tokens(self) -> list[TopTokens]:
        """The likeliest tokens of every row, as many as it asked for."""
        if self.likeliest is None:
            return [()] * len(self.tickets)
        tokens = cast(list[list[int]], self.likeliest[0].tolist())
        logprobs = cast(list[list[float]], self.likeliest[1].tolist())
        rows = (tuple(zip(*row, strict=True)) for row in zip(tokens, logprobs, strict=True))
        return [next(rows)[:top] if top else () for top in self.tops]


@dataclass(slots=True, eq=False)
class SampledModel:
    """A model whose forward pass ends in a draw, to be handed to ``BatchGenerator`` as model and as sampler.

    BatchGenerator takes the log-softmax of what a model returns, in the model's type and before the temperature.
    That is as dear as the draw itself, and not the distribution the token is drawn from. So the model returns a
    column of zeros, and the sampler draws from the logits that were put aside, with each row's key and temperature.
    """

    forward: Forward
    adapters: Adapters
    _logits: Logits | None = None
    _rows: RowState | None = None
    _draws: list[Draw] = field(default_factory=list)

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        *layers, self._rows = cache
        self._logits = None  # a prefill's, from which nothing was drawn
        if self._rows.ended:
            # BatchGenerator runs what was drawn last, in case that somebody goes on from there.
            return mx.zeros((tokens.shape[0], 1, 1))
        first, kinds = self._rows.kinds()
        if len(first) < len(kinds) and tokens.shape[1] == 1 and self.forward.shares(layers):
            self.adapters.select([self._rows.rows[index].adapter for index in first])
            self._logits = self.forward.run_one_of_each(tokens, layers, first, kinds)
        else:
            self.adapters.select([row.adapter for row in self._rows.rows])
            self._logits = self.forward.run(tokens, layers)
        return mx.zeros((tokens.shape[0], 1, 1))

    def draw(self, zeros: mx.array) -> mx.array:
        """Draw the next token of every row of the last forward pass: int32[B]; zeros where there was none to run."""
        if self._rows is None:
            raise RuntimeError("a draw without a forward pass before it")
        if self._logits is None:
            self._rows = None
            return mx.zeros(zeros.shape[0], dtype=mx.int32)
        tickets = tuple(row.ticket for row in self._rows.rows)
        versions = tuple(row.adapter.version for row in self._rows.rows)
        rows = self._rows.advance()
        tokens, logprobs = self._logits.draw(rows)
        tops = tuple(row.top for row in rows)
        asking = [index for index, top in enumerate(tops) if top]
        best = self._logits.likeliest(asking, [rows[index] for index in asking]) if asking else None
        mx.async_eval(tokens, logprobs, *(best or ()))
        self._draws.append(Draw(tickets, logprobs, versions, tops, best))
        self._logits = self._rows = None
        return tokens

    @property
    def drawn_tickets(self) -> set[int]:
        """Whose tokens were drawn since ``take_draws`` was last called."""
        return {ticket for draw in self._draws for ticket in draw.tickets}

    def take_draws(self) -> list[Draw]:
        """The draws since this was last called."""
        draws, self._draws = self._draws, []
        return draws
