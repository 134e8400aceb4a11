"""What an evaluation of several policies came to: as a table for people, and as one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from selfplay_ray.bootstrap import CONFIDENCE, FEW_CLUSTERS, RESAMPLES, Estimate
from selfplay_ray.evaluation import Comparison, Evaluation, compare
from selfplay_ray.runlog.evaluations import Interval
from selfplay_ray.runlog.plain_text import one_line

Estimates = Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Sheet:
    """The same episodes played by every policy, by its name; the first is what the others are compared with."""

    evaluations: Mapping[str, Evaluation]

    @property
    def kind(self) -> str:
        return "greedy" if self._first.greedy else "sampled"

    @property
    def episodes(self) -> int:
        """Root episodes that each policy played."""
        return len(self._first.results)

    @property
    def independent(self) -> int:
        """How many of them are no two of one group."""
        return len(set(self._first.clusters))

    @property
    def difference(self) -> Comparison | None:
        """Of the second policy to the first, if there are two."""
        evaluations = list(self.evaluations.values())
        return compare(*evaluations) if len(evaluations) == 2 else None

    @property
    def _first(self) -> Evaluation:
        return next(iter(self.evaluations.values()))


def as_json(sheets: list[Sheet], about: Mapping[str, Any]) -> str:
    """One object: what it is ``about``, and for every sheet each policy's numbers and the differences."""
    evaluations = [_sheet_json(sheet) for sheet in sheets]
    whole = {**about, "confidence": CONFIDENCE, "resamples": RESAMPLES, "evaluations": evaluations}
    return json.dumps(whole, allow_nan=False)


def _sheet_json(sheet: Sheet) -> dict[str, Any]:
    difference = sheet.difference
    return {
        "greedy": sheet.kind == "greedy",
        "episodes": sheet.episodes,
        "independent": sheet.independent,
        "policies": {
            name: {
                "version": evaluation.version,
                "rollouts": len(evaluation.rollouts),
                "failed": evaluation.failed,
                "unscored": evaluation.unscored,
                "rewards": _estimates_json(evaluation.rewards),
                "metrics": _estimates_json(evaluation.metrics),
            }
            for name, evaluation in sheet.evaluations.items()
        },
        "difference": difference
        and {
            "rewards": _estimates_json(difference.rewards),
            "metrics": _estimates_json(difference.metrics),
        },
    }


def _estimates_json(estimates: Estimates) -> dict[str, Any]:
    """JSON has no NaN: the ends of an interval that there isn't are null."""
    return {
        name: {
            "mean": estimate.mean,
            "low": None if math.isnan(estimate.low) else estimate.low,
            "high": None if math.isnan(estimate.high) else estimate.high,
            "clusters": estimate.clusters,
        }
        for name, estimate in estimates.items()
    }


def as_table(sheets: list[Sheet]) -> Table:
    """For each sheet rewards by role, then the metrics that say something else than these."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = list(sheets[0].evaluations)
    for heading in ("mean reward", *names, *(["difference"] if len(names) == 2 else [])):
        table.add_column(Text(one_line(heading)), overflow="fold")
    for sheet in sheets:
        rewards = [evaluation.rewards for evaluation in sheet.evaluations.values()]
        metrics = [_telling_metrics(evaluation) for evaluation in sheet.evaluations.values()]
        change = sheet.difference or Comparison({}, {})
        table.add_row(Text(sheet.kind, style="bold"))
        for role in _names(rewards):
            table.add_row(
                *_row(role, [estimates.get(role) for estimates in rewards], change.rewards.get(role))
            )
        for metric in _names(metrics):
            cells = [estimates.get(metric) for estimates in metrics]
            table.add_row(*_row(metric, cells, change.metrics.get(metric)), style="dim")
    return table


def notes(sheets: list[Sheet]) -> Iterator[str]:
    """What one must know to read the table, one line each."""
    many, independent = sheets[0].episodes, sheets[0].independent
    yield (
        f"{many} {'episode' if many == 1 else 'episodes'}, the same for all; 95 % intervals by bootstrap over "
        f"{independent} independent {'observation' if independent == 1 else 'observations'}"
    )
    estimates = [
        (f"{role}, {name}, {sheet.kind}", estimate.clusters)
        for sheet in sheets
        for name, evaluation in sheet.evaluations.items()
        for role, estimate in evaluation.rewards.items()
    ]
    fewest = min(estimates, key=lambda pair: pair[1], default=("", FEW_CLUSTERS))
    if fewest[1] < FEW_CLUSTERS:
        few = f"{one_line(fewest[0])}: {fewest[1]}"
        fault = "is somewhat too narrow" if fewest[1] > 1 else "can't be told from one"
        yield f"with fewer than {FEW_CLUSTERS} ({few}) an interval {fault}; --episodes plays more"
    for sheet in sheets:
        for name, evaluation in sheet.evaluations.items():
            if failures := [rollout.error for rollout in evaluation.rollouts if rollout.error is not None]:
                last = one_line(failures[-1].strip().splitlines()[-1])
                counts = f"{len(failures)} of {len(evaluation.rollouts)} rollouts failed and don't count"
                yield f"{one_line(name)}, {sheet.kind}: {counts}; the last: {last}"
            if evaluation.unscored:
                times = "once" if evaluation.unscored == 1 else f"{evaluation.unscored} times"
                fault = "nobody could tell what a role was worth, which doesn't count"
                yield f"{one_line(name)}, {sheet.kind}: {times} {fault}"


def _names(many: Iterable[Estimates]) -> list[str]:
    return list(dict.fromkeys(name for estimates in many for name in estimates))


def _telling_metrics(evaluation: Evaluation) -> Estimates:
    """Where a rubric has but one function, that is the reward, and need not be told twice."""
    rewards = evaluation.rewards
    return {
        name: value
        for name, value in evaluation.metrics.items()
        if value != rewards.get(name.rpartition("/")[2])
    }


def _row(name: str, cells: list[Estimate | None], difference: Estimate | None) -> list[Text]:
    row = [Text(f"  {one_line(name)}"), *(Text(_cell(cell, "")) for cell in cells)]
    return [*row, Text(_cell(difference, "+"))] if len(cells) == 2 else row


def _cell(estimate: Estimate | None, sign: str) -> str:
    """``0.12 [0.09, 0.16]``, or ``+0.65 [+0.57, +0.72]``."""
    if estimate is None:
        return "-"
    return f"{Interval(estimate.mean, estimate.low, estimate.high):{sign}}"
