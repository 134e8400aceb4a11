"""Every error this library raises on purpose, named by the boundary that was crossed.

SelfPlayError
├── ConfigError            a configuration file, flag or argument is wrong
├── ModelError             a model can't be found, fetched, read or written
│   └── AdapterError       adapter weights don't fit the model they are meant for
├── BLASError              no usable BLAS: MLX would be 60 times slower than it need be
├── UnknownNameError       a role, episode type or store that was never registered
├── EpisodeError           an episode did something it may not
│   ├── EpisodeLimitError  a tree of episodes grew deeper or wider than allowed
│   └── RubricError        a reward function raised, or returned what is no reward
├── CreditError            a group can't be compared: mixed episode types, a missing reward
├── InferenceError         a completion failed, or lacks what training needs (logprobs, token ids)
│   ├── ContextLengthError a prompt and its reply are longer than the model's context, or than the memory for it
│   ├── QueueFullError     as many requests wait as may
│   ├── UnavailableError   an engine or endpoint can't answer now; another may
│   └── EngineStoppedError nothing is generated any more: the engine was closed, or failed
├── SandboxError           a sandbox itself failed, whatever was run in it
├── TrainingError          a step can't be taken: malformed records, numbers that aren't finite
├── ReplayError            the replay journal was misused or can't be read
├── RunLogError            a run's folder can't be written or read
├── ErrorBudgetExceeded    too many episodes failed
└── ClusterError           an actor could not be started, was lost, or a port is in use

The message is one sentence that names what, which and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class SelfPlayError(Exception):
    """Base of every error raised on purpose by selfplay-ray."""


class ConfigError(SelfPlayError):
    """A configuration file, flag or argument is wrong."""


class ModelError(SelfPlayError):
    """A model can't be found, fetched, read or written."""


class AdapterError(ModelError):
    """Adapter weights don't fit the model they are meant for."""


class BLASError(SelfPlayError):
    """There is no usable BLAS, so MLX on this CPU would be about 60 times slower."""


class UnknownNameError(SelfPlayError):
    """A role, episode type or store was named that nobody registered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(
            kind, name, sorted(known)
        )  # what it is made of, so that it travels between processes
        self.kind, self.name, self.known = kind, name, sorted(known)

    def __str__(self) -> str:
        return f"unknown {self.kind} {self.name!r}; known: {', '.join(self.known) or 'none yet'}"


class EpisodeError(SelfPlayError):
    """An episode did something it may not."""


class EpisodeLimitError(EpisodeError):
    """A tree of episodes grew deeper or wider than the configuration allows."""


class RubricError(EpisodeError):
    """A reward function raised, or returned something that is no reward."""


class CreditError(SelfPlayError):
    """A group of rollouts can't be compared."""


class InferenceError(SelfPlayError):
    """A completion failed, or lacks what training needs."""


class ContextLengthError(InferenceError):
    """A prompt and its reply are together longer than the model's context, or than the memory for keys and values."""


class QueueFullError(InferenceError):
    """As many requests wait as may; the same one may be made again later."""


class UnavailableError(InferenceError):
    """An engine or endpoint can't answer now; the same request may be made of another one, or later."""


class EngineStoppedError(InferenceError):
    """Nothing is generated any more: the engine was closed, or its thread failed."""


class SandboxError(SelfPlayError):
    """A sandbox failed: nothing can be said about the program that was to run in it."""


class TrainingError(SelfPlayError):
    """A training step can't be taken on what was given."""


class ReplayError(SelfPlayError):
    """The replay journal was misused or can't be read."""


class RunLogError(SelfPlayError):
    """A file of a run's folder can't be written or read."""


class ErrorBudgetExceeded(SelfPlayError):
    """More episodes failed than the configuration tolerates."""


class ClusterError(SelfPlayError):
    """An actor could not be started, was lost, or a port is in use."""


class ActorLostError(ClusterError):
    """A process was lost before it could answer; another may take its place, and what was asked may be asked again."""
