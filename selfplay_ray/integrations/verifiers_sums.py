"""An environment of verifiers', for a small model: sums of two one-digit numbers."""

from __future__ import annotations

from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["Sums"]  # where verifiers looks for it

SHOWN = ((2, 3), (4, 8))


class SumData(vf.TaskData):
    """A question and its answer."""

    answer: str


class SumTask(vf.Task[SumData, vf.State, vf.TaskConfig]):
    """Answer with the number and nothing else."""

    @vf.reward
    async def correct(self, trace: vf.Trace) -> float:
        """Whether the reply is the sum."""
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=0.2)
    async def number(self, trace: vf.Trace) -> float:
        """Whether it is a number at all."""
        return float(trace.last_reply.isdecimal())


class Sums(vf.Taskset[SumTask, vf.TasksetConfig]):
    """All hundred of them, each after two that were answered."""

    def load(self) -> Iterator[SumTask]:
        shown = [message for a, b in SHOWN for message in (_question(a, b), _reply(a + b))]
        for a in range(10):
            for b in range(10):
                data = SumData(prompt=[*shown, _question(a, b)], answer=str(a + b))
                yield SumTask(data, self.config.task)


def _question(a: int, b: int) -> vf.UserMessage:
    return vf.UserMessage(content=f"What is {a} + {b}?")


def _reply(number: int) -> vf.AssistantMessage:
    return vf.AssistantMessage(content=str(number))
