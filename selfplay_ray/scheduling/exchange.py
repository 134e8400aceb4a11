"""What passes between the arena and one worker: each side knows what comes late, twice, or from before."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

from selfplay_ray.scheduling.messages import Orders, Report


class ArenaSide:
    """Numbers what a worker is told, and answers each of its reports once.

    The worker begins afresh with the first orders that are taken.
    """

    def __init__(self) -> None:
        # From above all numbers that the worker was ever told: orders are much rarer than nanoseconds.
        self._numbers = itertools.count(time.time_ns())
        self._began: int | None = None
        self._answered = -1
        self._answer: Orders | None = None
        self.orders = Orders(0, afresh=True)
        """What it is to be told next."""

    def take(self, policy_version: int) -> Orders | None:
        """What the worker is to be told now, if anything."""
        orders = self.orders
        if not orders:
            return None
        self.orders = Orders(0)
        orders.policy_version, orders.number = policy_version, next(self._numbers)
        if orders.afresh:
            self._began = orders.number
        return orders

    def is_new(self, report: Report) -> bool:
        """Whether ``report`` is to be taken in. One that comes again isn't, nor one from before it began afresh."""
        return report.began == self._began and report.number > self._answered

    def answer(self, report: Report, orders: Orders | None) -> None:
        """``report`` was taken in, and answered with ``orders``."""
        self._answered, self._answer = report.number, orders

    def answer_again(self, report: Report) -> Orders | None:
        """What ``report``, which isn't new, was answered with, if the worker may still wait for that."""
        waiting = report.began == self._began and report.number == self._answered
        return self._answer if waiting else None


@dataclass(slots=True)
class WorkerSide:
    """Puts the orders of a worker in order, and numbers its reports, of which one is on its way at a time."""

    began: int = -1
    _next: int = -1
    _early: dict[int, Orders] = field(default_factory=dict)
    _reports: int = 0

    def arrived(self, orders: Orders) -> list[Orders]:
        """What is to be done now that ``orders`` are here; those that came before their turn wait for it."""
        if orders.afresh and orders.number > self.began:
            self.began = self._next = orders.number
            self._early = {number: early for number, early in self._early.items() if number > self._next}
        if orders.number >= self._next:
            self._early[orders.number] = orders
        due = []
        while self._next in self._early:
            due.append(self._early.pop(self._next))
            self._next += 1
        return due

    def sending(self, report: Report) -> Report:
        """``report``, numbered."""
        self._reports += 1
        report.began, report.number = self.began, self._reports
        return report
