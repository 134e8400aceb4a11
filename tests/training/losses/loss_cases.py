"""Random micro-batches, the slopes of a NumPy function in float64, and our value and gradient to hold against them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from selfplay_ray.training.losses import LossInputs, LossOutput


@dataclass(frozen=True)
class Case:
    """The arrays of a micro-batch, [rows, tokens]: numbers that float32 holds, in float64 for NumPy's part."""

    logprobs: np.ndarray
    behaviour: np.ndarray
    advantages: np.ndarray
    mask: np.ndarray
    weights: np.ndarray
    proximal: np.ndarray
    reference: np.ndarray
    entropies: np.ndarray

    def inputs(self, logprobs: mx.array | None = None, *, proximal: bool = False) -> LossInputs:
        return LossInputs(
            mx.array(self.logprobs, mx.float32) if logprobs is None else logprobs,
            mx.array(self.behaviour, mx.float32),
            mx.array(self.advantages, mx.float32),
            mx.array(self.mask),
            weights=mx.array(self.weights, mx.float32),
            proximal_logprobs=mx.array(self.proximal, mx.float32) if proximal else None,
            reference_logprobs=mx.array(self.reference, mx.float32),
            entropies=mx.array(self.entropies, mx.float32),
        )

    def tokens(self) -> list[tuple[int, int]]:
        """Where the trained tokens are."""
        return [(int(row), int(token)) for row, token in np.argwhere(self.mask)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5)))

    def numbers(lowest: float, highest: float) -> np.ndarray:
        elements = st.floats(lowest, highest, width=32, allow_subnormal=False)
        return draw(hnp.arrays(np.float64, shape, elements=elements))

    return Case(
        logprobs=numbers(-4, 0),
        behaviour=numbers(-4, 0),
        advantages=numbers(-3, 3),
        mask=draw(hnp.arrays(np.bool_, shape)),
        weights=numbers(0, 1),
        proximal=numbers(-4, 0),
        reference=numbers(-4, 0),
        entropies=numbers(0, 5),
    )


def value_and_gradient(
    loss: Callable[[LossInputs], LossOutput], case: Case, *, proximal: bool = False
) -> tuple[LossOutput, np.ndarray]:
    """What ``loss`` returns for ``case``, and the gradient of its total by logprob."""

    def outputs(logprobs: mx.array) -> LossOutput:
        return loss(case.inputs(logprobs, proximal=proximal))

    (total, *statistics), gradient = mx.value_and_grad(outputs)(mx.array(case.logprobs, mx.float32))
    return LossOutput(total, *statistics), np.array(gradient)


def slopes(total: Callable[[np.ndarray], float], at: np.ndarray, width: float = 1e-5) -> np.ndarray:
    """The gradient of ``total`` by central differences, in float64."""
    result = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        step = np.zeros(at.shape)
        step[index] = width
        result[index] = (total(at + step) - total(at - step)) / (2 * width)
    return result


def away_from(values: np.ndarray, *bounds: float) -> bool:
    """Whether all ``values`` keep off ``bounds``, where a loss has a kink and so no gradient."""
    return all(np.abs(values - bound).min(initial=1) > 1e-3 for bound in bounds)
