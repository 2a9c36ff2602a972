"""One trial of a search: a configuration, trained and validated on every fold."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from esmtune.assignments import fit_task
from esmtune.composition import Origin, decided
from esmtune.config import TrainConfig
from esmtune.events import Notice, Progress, silent
from esmtune.features import Kept
from esmtune.journal import Journal
from esmtune.linear import forget_axes
from esmtune.members import fitted_members
from esmtune.membership import members_of
from esmtune.partition import dealt
from esmtune.records import Dataset
from esmtune.schemes import Scheme
from esmtune.selection import value_of
from esmtune.space import Settings, configured_by
from esmtune.standing import Fitted

TENTHS = 10  # of a training, at the end of each of which it can be given up
Answer = Literal["go on", "prune", "stop"]
Report = Callable[[int, float], Answer]  # of a step and what has been reached by then
State = Literal["complete", "pruned", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all trials have in common: what is fixed, the records without those of the test, folds and metric."""

    config: TrainConfig
    data: Dataset
    folds: int  # 1: the data say which records are for validation
    metric: str
    scheme: Scheme  # by which folds are dealt

    def reseeded(self, seed: int) -> "Bench":
        """The same with other folds, first weights and order."""
        scheme = replace(self.scheme, seed=seed)
        return replace(
            self, config=replace(self.config, seed=seed), scheme=scheme, data=dealt(self.data, scheme, self.folds)
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended: the metric on each fold, or why there is none."""

    state: State
    values: tuple[float, ...] = ()
    reason: str = ""
    seconds: float = 0.0


class _Left(Exception):  # noqa: N818 - nothing went wrong
    """A trial is left before its end."""

    def __init__(self, state: State, reason: str):
        super().__init__(reason)
        self.state: State = state


def attempt(bench: Bench, origin: Origin, settings: Settings, report: Report) -> Outcome:
    """Train and validate with some settings on every fold; what goes wrong is an outcome too."""
    started = time.monotonic()
    try:
        outcome = Outcome(state="complete", values=_measured(bench, origin, settings, report))
    except _Left as left:
        outcome = Outcome(state=left.state, reason=str(left))
    except (ValueError, torch.OutOfMemoryError) as error:
        outcome = Outcome(state="failed", reason=str(error))
    forget_axes()
    return replace(outcome, seconds=round(time.monotonic() - started, 2))


def _measured(bench: Bench, origin: Origin, settings: Settings, report: Report) -> tuple[float, ...]:
    """The validation metric of each fold, reported as a mean over the folds so far in ten steps each."""
    values: list[float] = []
    kept: Kept = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bench.config.seed)
        config = decided(configured_by(bench.config, settings), bench.data, origin, silent)
        fitted_task = fit_task(bench.data, config.task)
        for fold, member in enumerate(members_of(config, bench.data, bench.folds)):
            hear = _Ear(bench.metric, report, fold, tuple(values))
            (fitted,), _ = fitted_members(config, [member], origin, fitted_task, Journal(None), hear, kept=kept)
            values.append(_value(fitted, bench.metric, fold))
            hear.end(values[-1])
    return tuple(values)


def _value(fitted: Fitted, metric: str, fold: int) -> float:
    if fitted.diverged:
        where = f"step {fitted.diverged['step']:,}, epoch {fitted.diverged['epoch']}"
        raise _Left("failed", f"diverged on fold {fold + 1} at {where}")
    if fitted.best.get("metric") != metric:
        raise ValueError(
            f"{metric} is not defined on the validation labels of fold {fold + 1}: take fewer --folds, or "
            "--metric loss."
        )
    value = value_of(fitted.best, metric)
    if value is None:
        raise _Left("failed", f"{metric} is not defined on fold {fold + 1}: it predicts the same for all")
    return float(value)


class _Ear:
    """Hears how a training goes, and leaves it when it is told to."""

    def __init__(self, metric: str, report: Report, fold: int, before: tuple[float, ...]):
        self.metric, self.report, self.fold, self.before = metric, report, fold, before
        self.told = 0  # tenths of this training

    def __call__(self, event: Notice | Progress) -> None:
        """Report what the weights kept so far reach, whenever another tenth of the training is over."""
        if not isinstance(event, Progress) or event.scores is None:
            return
        value = event.scores.get(self.metric)
        if value is None:
            return
        tenth = min(TENTHS - 1, TENTHS * event.done // max(1, event.total))
        if tenth > self.told:
            self.told = tenth
            self._tell(value)

    def end(self, value: float) -> None:
        """Report what the training came to."""
        self.told = TENTHS
        self._tell(value)

    def _tell(self, value: float) -> None:
        answer = self.report(TENTHS * self.fold + self.told, statistics.fmean((*self.before, value)))
        if answer == "prune":
            raise _Left("pruned", f"behind the median of others on fold {self.fold + 1}")
        if answer == "stop":
            raise _Left("stopped", "the time was over")


def go_on(step: int, value: float) -> Answer:
    """What a trial is told that is to be finished whatever it comes to."""
    return "go on"
