"""Low-rank adapters side by side on one model: which there are, and layers that compute every row with its own.

An adapted layer computes h = W x + s · B_i A_i x (Hu et al. 2021, arXiv:2106.09685, eq. 3), i being the row's
adapter. Where the rows of a batch differ, the A of all of them are joined along the rank, as are the B:
z = x [A_1 A_2 …] is set to zero outside the row's own part, and z [B_1; B_2; …] added. That is two dense products
however the rows are mixed, on any backend; a product gathered row by row (Punica, Chen et al. 2023,
arXiv:2310.18547) is a loop over rows on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

from selfplay_ray.errors import AdapterError, InferenceError, UnknownNameError
from selfplay_ray.inference.requests import LIVE
from selfplay_ray.lora import LoRASettings, attach_lora, check_shapes, read_adapter, write_adapter

Factors = dict[str, tuple[mx.array, mx.array]]
"""A [in, r] and B [r, out] of every adapted layer, by its path (of experts: [E, r, in] and [E, out, r])."""


@dataclass(slots=True, eq=False)
class Adapter:
    """One policy on the base model. Rows of a batch hold on to it, through changes of its weights and its unloading.

    ``factors`` empty: it is the base model itself. ``name`` None: and always will be. ``changes`` count those of its
    weights: other weights may be called the same version again.
    """

    name: str | None
    version: int = 0
    changes: int = 0
    factors: Factors = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Selection:
    """What the next forward pass computes: the factors of every layer, and where rows differ in their adapter,
    ``own`` float32[B, R], 1 in the part of the joined rank that is the row's own."""

    factors: Factors = field(default_factory=dict)
    own: mx.array | None = None


class Adapted(nn.Module):
    """A layer beside which ``selection`` says what is to be added to it at ``path``, times ``scale``."""

    def __init__(self, linear: nn.Module, path: str, scale: float, selection: Selection) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        self._path, self.scale, self._selection = path, scale, selection

    @property
    def factors(self) -> tuple[mx.array, mx.array] | None:
        """A and B of the next forward pass, if it has any here."""
        return self._selection.factors.get(self._path)

    @property
    def own(self) -> mx.array | None:
        """The part of the rank that is each row's own, where rows differ."""
        return self._selection.own


class AdaptedLinear(Adapted):
    """A linear layer, plain or quantized; every row of a batch with its own adapter."""

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.linear(x)
        if self.factors is None:
            return y
        a, b = self.factors
        z = x @ a
        if self.own is not None:
            # Not a product: where one adapter overflows, infinity times zero would be no number for the others.
            z = mx.where(_per_row(self.own, z) > 0, z, 0.0)
        return y + (self.scale * (z @ b)).astype(x.dtype)


class AdaptedExperts(Adapted):
    """The same for the experts of a mixture, to which rows come in any order: no two adapters at once."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y: mx.array = self.linear(x, indices, sorted_indices=sorted_indices)
        if self.factors is None:
            return y
        z = x
        for factor in self.factors:
            z = mx.gather_mm(z, factor.swapaxes(-1, -2), rhs_indices=indices, sorted_indices=sorted_indices)
        return y + (self.scale * z).astype(x.dtype)


class Adapters:
    """The adapters loaded on ``model``, by name; the base model under None. Single-threaded but for ``find``.

    With ``settings`` None the model takes none, and ``LIVE`` is the base model. With a rank of 0 ``LIVE`` is all the
    model's own weights, so that there is neither another adapter nor, once they have changed, a base model.
    """

    def __init__(self, model: nn.Module, settings: LoRASettings | None, max_adapters: int) -> None:
        self._max_adapters = max_adapters
        self._selection = Selection()
        self._joined: tuple[tuple[Factors, ...], Factors] = ((), {})
        self.base = Adapter(None)
        self._by_name: dict[str, Adapter] = {LIVE: Adapter(LIVE)}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.can_mix = True
        self._whole: nn.Module | None = None
        if settings is not None:
            attach_lora(model, settings, seed=0)
            self.shapes = {name: weight.shape for name, weight in read_adapter(model).items()}
            self._replace_layers(model)
            self._whole = None if settings.rank else model

    @property
    def whole(self) -> bool:
        """Whether ``LIVE`` is all weights of the model, whose arrays are others then whenever it was loaded."""
        return self._whole is not None

    @property
    def versions(self) -> dict[str, int]:
        """The version of every adapter by its name."""
        return {name: adapter.version for name, adapter in self._by_name.items()}

    @property
    def loaded(self) -> list[str]:
        """Names of those that have weights."""
        return [name for name, adapter in self._by_name.items() if adapter.factors]

    def find(self, name: str | None) -> Adapter:
        """Raises UnknownNameError if no adapter of that name is loaded, InferenceError if the base model isn't there
        any more. May be called in any thread."""
        if name is None and self._whole is not None:
            raise InferenceError(
                "this engine trains all weights of its model (lora_rank 0) and can't answer as the base model; let "
                "judges do that (judges 1 or more)"
            )
        adapter = self.base if name is None else self._by_name.get(name)
        if adapter is None:
            raise UnknownNameError("adapter", str(name), self._by_name)
        return adapter

    def load(self, name: str, weights: Mapping[str, np.ndarray], version: int) -> Adapter:
        """Add an adapter, or give the one of that name other weights: all of them or, raising AdapterError, none."""
        with np.errstate(over="ignore"):
            single = {key: weight.astype(np.float32) for key, weight in weights.items()}
        check_shapes(self.shapes, single)  # not before: what is finite in float64 may not be in float32
        if self._whole is not None:
            return self._load_whole(self._whole, name, single, version)
        loaded = [other for other in self.loaded if other != LIVE]  # which has a place of its own
        if name not in (LIVE, *loaded) and len(loaded) >= self._max_adapters:
            raise AdapterError(
                f"there is no room for adapter {name!r}: the engine was started for {self._max_adapters}, and "
                f"{', '.join(loaded)} are loaded; unload one"
            )
        factors = _factors({key: mx.array(weight) for key, weight in single.items()})
        mx.eval(factors)
        adapter = self._by_name.get(name) or Adapter(name)
        adapter.factors, adapter.version = factors, version
        adapter.changes += 1
        # Another dict, not another entry: who is reading it in another thread has the old one.
        self._by_name = {**self._by_name, name: adapter}
        return adapter

    def _load_whole(
        self, model: nn.Module, name: str, weights: Mapping[str, np.ndarray], version: int
    ) -> Adapter:
        if name != LIVE:
            raise AdapterError(
                f"there is no room for adapter {name!r}: this engine trains all weights of its model (lora_rank 0)"
            )
        write_adapter(model, weights)
        adapter = self._by_name[LIVE]
        adapter.version = version
        adapter.changes += 1
        return adapter

    def unload(self, name: str) -> Adapter:
        """Forget the adapter, but for the rows that hold on to it; of ``LIVE`` only the weights.

        Raises:
            UnknownNameError: it isn't loaded.
            AdapterError: it is all weights of the model.
        """
        if self._whole is not None:
            raise AdapterError(
                "this engine trains all weights of its model (lora_rank 0): nothing is left without them"
            )
        adapter = self.find(name)
        rest = {other: kept for other, kept in self._by_name.items() if other != name}
        self._by_name = {LIVE: Adapter(LIVE), **rest} if name == LIVE else rest
        return adapter

    def holds(self, adapter: Adapter) -> bool:
        """Whether a request may still ask for ``adapter``."""
        return adapter is self.base or self._by_name.get(adapter.name or "") is adapter

    def select(self, rows: Sequence[Adapter]) -> None:
        """Let the next forward pass compute row i with ``rows[i]``."""
        used = [adapter for adapter in dict.fromkeys(rows) if adapter.factors]
        if not used:
            self._selection.factors, self._selection.own = {}, None
        elif len(used) == 1 and all(adapter is used[0] for adapter in rows):
            self._selection.factors, self._selection.own = used[0].factors, None
        else:
            used.sort(key=id)  # so that another order of the rows joins nothing anew
            self._selection.factors = self._join(used)
            self._selection.own = _own_parts(rows, used)

    def _join(self, adapters: Sequence[Adapter]) -> Factors:
        parts = tuple(adapter.factors for adapter in adapters)
        if len(parts) == 1:
            return parts[0]
        last, joined = self._joined
        if len(parts) != len(last) or any(new is not old for new, old in zip(parts, last, strict=True)):
            joined = {
                path: (
                    mx.concatenate([part[path][0] for part in parts], axis=-1),
                    mx.concatenate([part[path][1] for part in parts], axis=-2),
                )
                for path in parts[0]
            }
            self._joined = parts, joined
        return joined

    def _replace_layers(self, model: nn.Module) -> None:
        """Put ours where mlx-lm has put LoRA layers for one adapter."""
        layers: list[tuple[str, nn.Module]] = []
        for path, module in model.named_modules():
            if isinstance(module, LoRALinear):
                layers.append((path, AdaptedLinear(module.linear, path, module.scale, self._selection)))
            elif isinstance(module, LoRASwitchLinear):
                layers.append((path, AdaptedExperts(module.linear, path, module.scale, self._selection)))
                self.can_mix = False
        model.update_modules(tree_unflatten(layers))


def _factors(arrays: Mapping[str, mx.array]) -> Factors:
    paths = [name.removesuffix(".lora_a") for name in arrays if name.endswith(".lora_a")]
    return {path: (arrays[f"{path}.lora_a"], arrays[f"{path}.lora_b"]) for path in paths}


def _own_parts(rows: Sequence[Adapter], used: Sequence[Adapter]) -> mx.array:
    """float32[B, R]: 1 where the joined rank is of the row's own adapter."""
    ranks = [next(iter(adapter.factors.values()))[0].shape[-1] for adapter in used]
    own = np.array([[adapter is row for adapter in used] for row in rows], dtype=np.float32)
    return mx.array(np.repeat(own, ranks, axis=1))


def _per_row(own: mx.array, z: mx.array) -> mx.array:
    """``own`` [B, R] in the shape of ``z`` [B, …, R], or of [B · T, R] where a model has made one axis of two."""
    if own.shape[0] != z.shape[0]:
        own = mx.repeat(own, z.shape[0] // own.shape[0], axis=0)
    return own.reshape(own.shape[0], *[1] * (z.ndim - 2), own.shape[1])
