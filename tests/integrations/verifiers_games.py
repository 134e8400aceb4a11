"""Environments as users of verifiers write them, with its public API, for the tests of how they are played."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import verifiers.v1 as vf


class WordData(vf.TaskData):
    word: str


class EchoTask(vf.Task[WordData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def same(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == self.data.word)

    @vf.reward(weight=0.5)
    async def short(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply) <= 3)

    @vf.metric
    async def letters(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))


class EchoConfig(vf.TasksetConfig):
    words: tuple[str, ...] = ("cat", "horse", "dog", "bee", "cat")


class Echo(vf.Taskset[EchoTask, EchoConfig]):
    """Say the word again."""

    def load(self) -> Iterator[EchoTask]:
        for word in self.config.words:
            yield EchoTask(
                WordData(prompt=f"Say {word}.", system_prompt="Repeat.", word=word), self.config.task
            )


class Endless(Echo):
    INFINITE = True


class WithTools(Echo):
    @classmethod
    def toolsets(cls, config: EchoConfig) -> list[vf.Toolset]:
        return [vf.Toolset(vf.ToolsetConfig())]


class BadRewardTask(vf.Task[WordData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def broken(self, trace: vf.Trace) -> float:
        raise ValueError("no such answer")


class BadReward(vf.Taskset[BadRewardTask, vf.TasksetConfig]):
    def load(self) -> Iterator[BadRewardTask]:
        yield BadRewardTask(WordData(prompt="Say a.", word="a"), self.config.task)


class GuesserConfig(vf.EnvConfig):
    guesser: vf.AgentConfig = vf.AgentConfig()


class Guessing(vf.Env[GuesserConfig]):
    """Three guesses, each after the first with a hint; 1 for the word, less a quarter for each miss."""

    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        misses = 0
        async with agents.guesser.interaction(task) as talk:
            segment = await talk.turn()
            while not segment.terminated and segment.last_reply != task.data.word and misses < 2:
                misses += 1
                segment = await talk.turn(f"No. Miss {misses}.")
        talk.trace.record_reward("guessed", 1 - misses / 4)


class PairConfig(vf.EnvConfig):
    first: vf.AgentConfig = vf.AgentConfig()
    second: vf.AgentConfig = vf.AgentConfig()
    judge: vf.AgentConfig = vf.AgentConfig()


class Pair(vf.Env[PairConfig]):
    """Two answer at once, and who gets the judge's word wins."""

    async def setup(self, agents: vf.Agents) -> None:
        agents.judge.trainable = False

    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        one, two = await asyncio.gather(agents.first.run(task), agents.second.run(task))
        verdict = await agents.judge.run(task.with_data(prompt=f"{one.last_reply} or {two.last_reply}?"))
        for trace in (one, two):
            won = trace.last_reply == verdict.last_reply
            trace.record_reward("won", 1.0 if won else -1.0)


class Raising(vf.Env[GuesserConfig]):
    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        await agents.guesser.run(task)
        raise KeyError("the board")


class Hanging(vf.Env[GuesserConfig]):
    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        await agents.guesser.run(task)
        await asyncio.Event().wait()


class Gambling(vf.Env[GuesserConfig]):
    """Reseeds the process, draws, and says what it drew."""

    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        random.seed(1)
        first = random.random()
        async with agents.guesser.interaction(task) as talk:
            await talk.turn()
        talk.trace.record_metric("first", first)
        talk.trace.record_metric("second", random.random())
        talk.trace.record_reward("played", 1.0)
