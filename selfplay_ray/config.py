"""The configuration of a run: one model, filled from its defaults, then a TOML file, then flags."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from selfplay_ray.loss_settings import KLEstimator, KLPlacement, LossName, Normalization


class RunConfig(BaseModel):
    """Everything a training run can be told. A task adds its own fields in a subclass."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$")
    """Name of the run and of its folder; made from the task and the time when empty."""
    resume: Path | None = None
    """Folder of a run to go on with, as runs/NAME: its settings count, but for what is given beside."""
    output_dir: Path = Path("runs")
    """Folder that holds the runs."""
    seed: int = Field(0, ge=0)
    """Fixes every chance in the run: artifacts, episodes, samples, initial adapter weights."""
    num_steps: int = Field(100, ge=1)
    """Training steps to take."""
    batch_size: int = Field(8, ge=1)
    """Root episodes per training step."""

    model_path: str = "smollm2-135m"
    """The model: `smollm2-135m`, a local folder, or a hub id, as mlx-lm takes them."""
    lora_rank: int = Field(8, ge=0)
    """Rank of the adapter on every linear layer; 0: none, all weights of the model are trained."""
    lora_scale: float = Field(4.0, gt=0)
    """Factor on the adapter's product."""
    lora_layers: int = Field(-1, ge=-1)
    """How many layers, counted from the last, carry an adapter; -1 is all."""
    adapter: Path | None = None
    """Begin with this adapter: a folder of PEFT's, or the file of another run's."""

    max_tokens: int = Field(256, ge=1)
    """Most tokens in one completion, for roles that set no bound of their own."""
    min_trainable: int = Field(1, ge=0)
    """Records with a gradient that a step needs; with fewer, another batch is played for it. 0 takes it as it is."""
    max_extra_batches: int = Field(7, ge=0)
    """Most batches that a step may ask for so; if then it has nothing to train on at all, the run stops."""
    max_staleness: int = Field(1, ge=0)
    """Most versions a sample may lag behind the policy it trains; 0 makes generation and training alternate."""
    max_depth: int = Field(8, ge=1)
    """Deepest level of child episodes allowed."""
    max_fan_out: int = Field(1024, ge=1)
    """Most child episodes one episode may ask for in all."""
    error_budget: float = Field(0.1, ge=0, le=1)
    """Share of failed episodes, of any type's last 200, above which the run stops."""

    lr: float = Field(3e-4, gt=0)
    """AdamW's learning rate."""
    lr_decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes down over the run's steps."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate goes up, in a straight line."""
    lr_final: float = Field(0.0, ge=0, le=1)
    """Share of the learning rate that a decay ends with."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients longer than this are scaled down to it."""
    micro_token_budget: int = Field(4096, ge=1)
    """Most tokens the learner runs at once; a step is cut into as many micro-batches as it takes."""
    grad_checkpoint: bool = False
    """Compute every layer again in the backward pass: a fraction of the memory, a third more time."""

    loss: LossName = "ppo_clip"
    """The policy loss; each comes with the bounds and the normalization of its paper."""
    clip_low: float | None = Field(None, ge=0)
    """Lower bound on the ratio, 1 - clip_low (for dppo_tv, on the distance); the loss's own when unset."""
    clip_high: float | None = Field(None, ge=0)
    """Upper bound on the ratio, 1 + clip_high (for dppo_tv, on the distance); the loss's own when unset."""
    normalization: Normalization | None = None
    """What a token counts for: all tokens alike, all records alike, or over max_tokens; the loss's own when unset."""
    role_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each role's objective; with any given, every role has a mean of its own, and weighs 1 by default."""
    truncation: float | None = Field(None, gt=0)
    """Bound of truncated importance sampling, for a sampler that isn't quite the policy; off when unset."""
    log_ratio_coefficient: float | None = Field(None, ge=0)
    """Coefficient of the log-ratio's square; the loss's own when unset."""
    kl_coefficient: float = Field(0.0, ge=0)
    """Coefficient of the KL to the base model; 0 is none."""
    kl_estimator: KLEstimator = "k2"
    """How a penalty estimates the KL."""
    kl_placement: KLPlacement = "penalty"
    """Whether the KL is a penalty, or taken off the advantages (token by token, or to the record's end)."""
    kl_importance_weighted: bool = True
    """Whether a KL penalty is corrected for tokens of an older policy."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """Coefficient of the entropy bonus; 0 is none."""

    engines: int = Field(1, ge=0)
    """Inference engines."""
    endpoints: tuple[str, ...] = ()
    """Addresses, up to /v1, of servers that speak vLLM's dialect and sample besides the engines, or with `engines` 0
    instead of them."""
    endpoint_model: str = ""
    """What the endpoints call the base model, which must be `model_path`'s; found out from them when empty."""
    endpoint_api_key_env: str = Field("SELFPLAY_ENDPOINT_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the endpoints' key, if they ask for one."""
    endpoint_timeout: float = Field(600.0, gt=0)
    """Seconds that an endpoint may take for a request, and that a request waits where no engine can answer it."""
    rollout_workers: int = Field(1, ge=1)
    """Rollout workers."""
    judges: int = Field(0, ge=0)
    """Judges, each with a base model of its own; with 0 the engines answer their calls, with the base model too."""
    concurrency: int = Field(32, ge=1)
    """Most sequences one engine decodes at once."""
    hang_timeout: float = Field(120.0, gt=0)
    """Seconds an actor may be silent, because an episode of it blocks, say, before it is killed and replaced."""
    step_timeout: float = Field(1800.0, gt=0)
    """Seconds without a training step after which the run stops; long before it says what it waits for."""
    checkpoint_every: int = Field(10, ge=1)
    """Steps between checkpoints; the last step always leaves one."""
    keep_checkpoints: int = Field(3, ge=1)
    """Newest checkpoints to keep."""
    best_metric: str = ""
    """A metric, as reward/Solver; the checkpoint at which it was highest is kept too."""

    eval_every: int = Field(0, ge=0)
    """Steps between evaluations, which are never trained on; before the first and after the last step there is one as
    well. 0 is none."""
    eval_episodes: int = Field(32, ge=1)
    """Root episodes of an evaluation: the same ones each time."""
    eval_greedy: bool = True
    """Whether an evaluation is played at temperature 0."""

    wandb_project: str | None = None
    """Log to this Weights & Biases project; nothing is sent without it."""
    wandb_run_name: str | None = None
    """Name of the Weights & Biases run; the run's own when unset."""
    verbose: bool = False
    """Show a sample of what the agents said at every step."""

    @field_validator("endpoints")
    @classmethod
    def _check_endpoints(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.username or parts.password:
                raise ValueError("an address holds no password: endpoint_api_key_env names where the key is")
            if parts.scheme not in ("http", "https") or not parts.netloc or not url.endswith("/v1"):
                raise ValueError("an endpoint is an address up to /v1, as http://127.0.0.1:8000/v1 is")
        if len(set(urls)) < len(urls):
            raise ValueError("an endpoint is there twice")
        return urls

    @model_validator(mode="after")
    def _check_that_something_samples(self) -> Self:
        if self.engines + len(self.endpoints) < 1:
            raise ValueError("nothing samples with engines = 0 and no endpoints; give 1 or more of either")
        if self.endpoints and not self.lora_rank:
            raise ValueError(
                "endpoints take adapters; with lora_rank = 0, where all weights are trained, give none"
            )
        return self
