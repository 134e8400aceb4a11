"""The configuration of a run: one model, filled from its defaults, then a TOML file, then flags."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class RunConfig(BaseModel):
    """Everything a training run can be told. A task adds its own fields in a subclass."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$")
    """Name of the run and of its folder; made from the task and the time when empty."""
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
    lora_rank: int = Field(8, ge=1)
    """Rank of the adapter on every linear layer."""
    lora_scale: float = Field(4.0, gt=0)
    """Factor on the adapter's product."""
    lora_layers: int = Field(-1, ge=-1)
    """How many layers, counted from the last, carry an adapter; -1 is all."""

    max_tokens: int = Field(256, ge=1)
    """Most tokens in one completion, for roles that set no bound of their own."""
    max_staleness: int = Field(1, ge=0)
    """Most versions a sample may lag behind the policy it trains; 0 makes generation and training alternate."""
    max_depth: int = Field(8, ge=1)
    """Deepest level of child episodes allowed."""
    max_fan_out: int = Field(1024, ge=1)
    """Most child episodes one episode may ask for in all."""
    error_budget: float = Field(0.1, ge=0, le=1)
    """Share of failed episodes above which the run stops."""

    lr: float = Field(3e-4, gt=0)
    """AdamW's learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    clip_low: float = Field(0.2, ge=0, lt=1)
    """PPO clipping: the ratio is cut at 1 - clip_low."""
    clip_high: float = Field(0.28, ge=0)
    """PPO clipping: the ratio is cut at 1 + clip_high."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients longer than this are scaled down to it."""
    micro_token_budget: int = Field(4096, ge=1)
    """Most tokens the learner runs at once; a step is cut into as many micro-batches as it takes."""

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
    step_timeout: float = Field(1800.0, gt=0)
    """Seconds without a training step after which the run stops and says what it waited for."""
    checkpoint_every: int = Field(10, ge=1)
    """Steps between checkpoints; the last step always leaves one."""

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
        return self
