"""Self-play reinforcement learning for language models: hierarchical episodes on Ray, engine and learner in MLX.

What is named in ``__all__`` is the public interface; each name is imported from its module when first used, so
that ``import selfplay_ray`` loads neither MLX nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from selfplay_ray.blas import preload

preload()

if TYPE_CHECKING:
    from selfplay_ray.actors.run import train
    from selfplay_ray.actors.spec import ActorSpec, ClusterSpec
    from selfplay_ray.arena import Arena, ArenaStep
    from selfplay_ray.artifacts import Artifact, ArtifactStore
    from selfplay_ray.bootstrap import Estimate
    from selfplay_ray.command import run_command
    from selfplay_ray.config import RunConfig
    from selfplay_ray.config_sources import load_config
    from selfplay_ray.credit import (
        ConstantCredit,
        CreditAssigner,
        EpisodicRewardCredit,
        GRPOCredit,
        RAECredit,
        RLOOCredit,
        apply_credit,
    )
    from selfplay_ray.episode import ChatEpisode, Episode, EpisodeState, MultiTurnEpisode, SingleTurnEpisode
    from selfplay_ray.errors import SelfPlayError
    from selfplay_ray.evaluation import Comparison, Evaluation, compare, evaluate
    from selfplay_ray.grouped_arena import GroupedArena
    from selfplay_ray.inference.client import EngineClient
    from selfplay_ray.inference.engine import Engine
    from selfplay_ray.inference.openai_client import OpenAIClient
    from selfplay_ray.rubric import RewardFn, Rubric
    from selfplay_ray.runtime import LocalRuntime, ModelClient, Runtime
    from selfplay_ray.testing import MockInferenceClient
    from selfplay_ray.training.loop import EvaluationSettings, WeightPublisher, simple_training_loop
    from selfplay_ray.training.trainer import Trainer, TrainerSettings
    from selfplay_ray.types import (
        Completion,
        EpisodeRequest,
        GenerateResult,
        Message,
        ModelCall,
        ModelResponse,
        PolicySpan,
        Role,
        Rollout,
        RolloutGroup,
        Step,
        TrainingRecord,
    )

__version__ = "0.1.0"

_MODULES = {
    "actors.run": ("train",),
    "actors.spec": ("ActorSpec", "ClusterSpec"),
    "arena": ("Arena", "ArenaStep"),
    "artifacts": ("Artifact", "ArtifactStore"),
    "bootstrap": ("Estimate",),
    "command": ("run_command",),
    "config": ("RunConfig",),
    "config_sources": ("load_config",),
    "credit": (
        "ConstantCredit",
        "CreditAssigner",
        "EpisodicRewardCredit",
        "GRPOCredit",
        "RAECredit",
        "RLOOCredit",
        "apply_credit",
    ),
    "episode": ("ChatEpisode", "Episode", "EpisodeState", "MultiTurnEpisode", "SingleTurnEpisode"),
    "errors": ("SelfPlayError",),
    "evaluation": ("Comparison", "Evaluation", "compare", "evaluate"),
    "grouped_arena": ("GroupedArena",),
    "inference.client": ("EngineClient",),
    "inference.engine": ("Engine",),
    "inference.openai_client": ("OpenAIClient",),
    "rubric": ("RewardFn", "Rubric"),
    "runtime": ("LocalRuntime", "ModelClient", "Runtime"),
    "testing": ("MockInferenceClient",),
    "training.loop": ("EvaluationSettings", "WeightPublisher", "simple_training_loop"),
    "training.trainer": ("Trainer", "TrainerSettings"),
    "types": (
        "Completion",
        "EpisodeRequest",
        "GenerateResult",
        "Message",
        "ModelCall",
        "ModelResponse",
        "PolicySpan",
        "Role",
        "Rollout",
        "RolloutGroup",
        "Step",
        "TrainingRecord",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ActorSpec",
    "Arena",
    "ArenaStep",
    "Artifact",
    "ArtifactStore",
    "ChatEpisode",
    "ClusterSpec",
    "Comparison",
    "Completion",
    "ConstantCredit",
    "CreditAssigner",
    "Engine",
    "EngineClient",
    "Episode",
    "EpisodeRequest",
    "EpisodeState",
    "EpisodicRewardCredit",
    "Estimate",
    "Evaluation",
    "EvaluationSettings",
    "GRPOCredit",
    "GenerateResult",
    "GroupedArena",
    "LocalRuntime",
    "Message",
    "MockInferenceClient",
    "ModelCall",
    "ModelClient",
    "ModelResponse",
    "MultiTurnEpisode",
    "OpenAIClient",
    "PolicySpan",
    "RAECredit",
    "RLOOCredit",
    "RewardFn",
    "Role",
    "Rollout",
    "RolloutGroup",
    "Rubric",
    "RunConfig",
    "Runtime",
    "SelfPlayError",
    "SingleTurnEpisode",
    "Step",
    "Trainer",
    "TrainerSettings",
    "TrainingRecord",
    "WeightPublisher",
    "__version__",
    "apply_credit",
    "compare",
    "evaluate",
    "load_config",
    "run_command",
    "simple_training_loop",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'selfplay_ray' has no attribute {name!r}")
    value = getattr(import_module(f"selfplay_ray.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
