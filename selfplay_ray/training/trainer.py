"""The trainer: training records in, a better adapter and the numbers to trust it by out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_unflatten

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError, TrainingError
from selfplay_ray.inference.adapter_files import begin_with
from selfplay_ray.lora import (
    LoRASettings,
    SavedAdapter,
    adapter_off,
    arrays_by_path,
    attach_lora,
    check_adapter,
    read_adapter,
    write_adapter,
)
from selfplay_ray.loss_settings import LossSettings
from selfplay_ray.models import load_model
from selfplay_ray.training.batching import plan_step
from selfplay_ray.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from selfplay_ray.training.forward import choose_forward, vocabulary_size
from selfplay_ray.training.gradient import StepLoss, step_gradient
from selfplay_ray.training.health import TrainMetrics, finite, token_health
from selfplay_ray.training.losses import Objective, make_objective, step_weights
from selfplay_ray.training.micro_batch import MicroBatch
from selfplay_ray.training.optimizer import Decay, make_adamw, make_schedule, read_optimizer, write_optimizer
from selfplay_ray.training.recompute import recompute_layers
from selfplay_ray.types import TrainingRecord

NONFINITE_LIMIT = 3
"""So many gradients in a row that aren't finite end the run: it would not recover by itself."""


_SAME_IN_CONFIG = (
    "lr",
    "lr_decay",
    "warmup_steps",
    "lr_final",
    "num_steps",
    "weight_decay",
    "max_grad_norm",
    "micro_token_budget",
    "grad_checkpoint",
    "adapter",
    "seed",
)


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How the trainer steps.

    ``lr_decay``, ``warmup_steps``, ``lr_final`` and ``num_steps`` make a schedule of ``lr`` (``make_schedule``).
    ``max_grad_norm`` bounds the global norm of the gradient; ``seed`` draws the adapter's first weights, as far as
    they aren't those of ``adapter``, which may be of a smaller rank, of another scale and on fewer layers.
    ``grad_checkpoint`` computes every layer again in the backward pass: a fraction of the memory, a third more
    time. The rest is as in ``RunConfig``.
    """

    lr: float = 3e-4
    lr_decay: Decay = "constant"
    warmup_steps: int = 0
    lr_final: float = 0.0
    num_steps: int = 100
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    loss: LossSettings = field(default_factory=LossSettings)
    micro_token_budget: int = 4096
    grad_checkpoint: bool = False
    lora: LoRASettings = field(default_factory=LoRASettings)
    adapter: Path | None = None
    seed: int = 0

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        return cls(
            loss=LossSettings(**{one.name: getattr(config, one.name) for one in fields(LossSettings)}),
            lora=LoRASettings(config.lora_rank, config.lora_scale, config.lora_layers),
            **{name: getattr(config, name) for name in _SAME_IN_CONFIG},
        )


class Trainer:
    """Trains an adapter on a frozen model, or with a LoRA rank of 0 the model itself, with AdamW on clipped gradients.

    MLX binds arrays and streams to threads: create a trainer and call it in one and the same thread. What it
    hands out, adapters and metrics, is numpy and plain numbers, and may go anywhere.

    An ``objective`` of your own, a function for its policy loss say, takes the place of the settings' one; what a
    token counts for stays theirs.

    Raises:
        ModelError: there is no such model.
        AdapterError: there is no such adapter to begin with, or it doesn't fit.
        ConfigError: the settings of the loss, or of the learning rate, contradict each other.
    """

    def __init__(
        self, model_path: str | Path, settings: TrainerSettings, objective: Objective | None = None
    ) -> None:
        self.settings = settings
        self.objective = objective or make_objective(settings.loss)
        if self.objective.needs_reference and not settings.lora.rank:
            raise ConfigError(
                "with all weights trained (lora_rank 0) there is no base model to stay close to; "
                "set kl_coefficient to 0, or train an adapter"
            )
        schedule = make_schedule(
            settings.lr,
            decay=settings.lr_decay,
            warmup=settings.warmup_steps,
            steps=settings.num_steps,
            final=settings.lr_final,
        )
        self.model, _ = load_model(model_path)
        self.forward = choose_forward(self.model)
        self._vocabulary = vocabulary_size(self.model)
        attach_lora(self.model, settings.lora, settings.seed)
        if settings.adapter is not None:
            begin_with(self.model, settings.adapter, settings.lora.scale)
        if settings.grad_checkpoint:
            recompute_layers(self.model)
        parameters = arrays_by_path(self.model.trainable_parameters())
        self.optimizer = make_adamw(parameters, schedule, settings.weight_decay)
        self._version = 0
        self.nonfinite_in_a_row = 0

    @property
    def version(self) -> int:
        """Steps taken, which is the version of the adapter as it is now."""
        return self._version

    def adapter(self) -> dict[str, np.ndarray]:
        """A copy of the adapter's weights (of rank 0: of all weights), float32, by parameter path."""
        return read_adapter(self.model)

    def train_step(self, records: Sequence[TrainingRecord]) -> TrainMetrics:
        """Take one step on ``records``, whose order doesn't matter, and raise the version by one.

        Denominators are over the records that have a gradient, all of the step's. The version rises also when
        there are none, because the run's pace counts versions.

        Raises:
            TrainingError: a record can't be trained on, or the third gradient in a row isn't finite.
        """
        started = time.perf_counter()
        plan = plan_step(
            records,
            self.settings.micro_token_budget,
            self._vocabulary,
            shared=self.forward.shared,
            every=self.objective.needs_every_record,
        )
        weights = step_weights(plan.records, self.settings.loss)
        loss = StepLoss(self.objective, weights, self._version, self._reference_logprobs)
        gradient = step_gradient(self.model, plan.batches, loss, self.forward)
        grad_norm = self._apply(gradient.gradients) if plan.batches else 0.0
        health = token_health(gradient.tokens, self._version)
        self._version += 1
        mx.clear_cache()  # the next step is a rollout away, and an engine on this device can use the memory
        return TrainMetrics(
            loss=finite(gradient.loss),
            grad_norm=finite(grad_norm),
            lr=float(self.optimizer.learning_rate.item()),
            nonfinite=not math.isfinite(grad_norm),
            records=len(plan.records),
            skipped_zero_advantage=plan.skipped,
            tokens_trained=plan.tokens_trained,
            tokens_run=plan.tokens_run,
            seconds=time.perf_counter() - started,
            **asdict(health),
        )

    def _reference_logprobs(self, batch: MicroBatch) -> mx.array:
        """The base model's."""
        with adapter_off(self.model):
            logprobs = self.forward(self.model, batch, gradient=False).logprobs
            mx.eval(logprobs)
        return logprobs

    def save(self, path: Path, extra: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint to the folder ``path``, atomically; ``extra`` is JSON to keep beside it.

        Raises:
            TrainingError: ``extra`` isn't JSON.
        """
        adapter = SavedAdapter(self.adapter(), self.settings.lora, self._version)
        counters = {"nonfinite_in_a_row": self.nonfinite_in_a_row}
        write_checkpoint(path, Checkpoint(adapter, read_optimizer(self.optimizer), counters, extra or {}))

    def load(self, path: Path) -> dict[str, Any]:
        """Go on exactly where ``save`` was called; returns what it was given to keep.

        Raises:
            TrainingError: there is no checkpoint, or it is damaged.
            ConfigError: it was made with other LoRA settings.
            AdapterError: it was made for another model.
        """
        checkpoint = read_checkpoint(path)
        if checkpoint.adapter.settings != self.settings.lora:
            raise ConfigError(
                f"checkpoint {path} was made with {checkpoint.adapter.settings}, this run asks for "
                f"{self.settings.lora}; go on with the same settings, or begin a new run"
            )
        check_adapter(self.model, checkpoint.adapter.weights)
        write_optimizer(self.optimizer, checkpoint.optimizer)
        write_adapter(self.model, checkpoint.adapter.weights)
        self._version = checkpoint.adapter.version
        self.nonfinite_in_a_row = checkpoint.counters.get("nonfinite_in_a_row", 0)
        return dict(checkpoint.extra)

    def _apply(self, gradients: dict[str, mx.array]) -> float:
        """Clip, then step unless the gradient isn't finite; returns the norm before clipping."""
        clipped, norm = optim.clip_grad_norm(gradients, self.settings.max_grad_norm)
        grad_norm = float(norm.item())
        if not math.isfinite(grad_norm):
            self._count_nonfinite()
            return grad_norm
        self.nonfinite_in_a_row = 0
        parameters = arrays_by_path(self.model.trainable_parameters())
        updated = self.optimizer.apply_gradients(clipped, parameters)
        self.model.update(tree_unflatten(list(updated.items())))
        mx.eval(updated, self.optimizer.state)
        return grad_norm

    def _count_nonfinite(self) -> None:
        self.nonfinite_in_a_row += 1
        if self.nonfinite_in_a_row >= NONFINITE_LIMIT:
            raise TrainingError(
                f"the gradient was not finite {NONFINITE_LIMIT} steps in a row (last at version {self._version}); "
                "lower the learning rate, and look at the rewards and logprobs of the last records"
            )
