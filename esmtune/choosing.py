"""How a search goes: heads on a frozen encoder first, then tunings; the best is compared with the defaults."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from esmtune.assignments import fit_task
from esmtune.composition import Origin
from esmtune.config import TOKENS_PER_BATCH, TrainConfig
from esmtune.events import Notice, Progress, Watcher, silent
from esmtune.journal import Journal
from esmtune.members import train_members
from esmtune.membership import members_of
from esmtune.metrics import sign_of
from esmtune.partition import dealt
from esmtune.processes import terminable
from esmtune.records import Dataset
from esmtune.regression import Regression
from esmtune.schemes import Scheme
from esmtune.scoring import scores_of
from esmtune.space import STEPWISE, Axis, Settings, Value, configured_by, fixed_by, space_of, usual_settings
from esmtune.studies import Asking, First, Ledger, Stage, Trial, better_of, silenced
from esmtune.trials import Bench, Outcome, go_on
from esmtune.verdicts import Verdict, verdict_of
from esmtune.workers import Job, origin_of, work_through

SEEDS = 3  # that the best and the defaults are compared by where there is one set of validation rows

Budget = tuple[int | None, float | None]  # trials; when the time is over, by the clock that only goes on


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a search has come to, or has come to so far."""

    metric: str
    trials: tuple[Trial, ...]
    best: Trial
    verdict: Verdict
    nested: Verdict | None
    importance: dict[str, float]


Keep = Callable[[Chosen], None]


def choose(
    config: TrainConfig, data: Dataset, folds: int, scheme: Scheme, *, limits: Sequence[str], budget: Budget, jobs: int,
    nested: int | None, file: Path | None, identity: dict[str, Any], keep: Keep, watch: Watcher,
) -> Chosen:  # fmt: skip
    """Search on records that have no test among them, and compare what was found with the defaults.

    Raises:
        ValueError: for options that cannot be had, or another search in the same file.
        Terminated: when the process was asked to stop.
    """
    fixed = replace(
        config, seeds=1, folds=None, learning_curve=False, calibration_fraction=0.0, references=0, dropout_samples=0,
        tokens_per_batch=config.tokens_per_batch or TOKENS_PER_BATCH, report=False,
    )  # fmt: skip
    fitted = fit_task(data, config.task)
    metric = config.metric or fitted.metric
    parts = [part for _, part, _ in fitted.parts()]
    if metric == "loss" and any(isinstance(part, Regression) and not part.has_one_loss for part in parts):
        raise ValueError(
            "--metric loss would compare losses that are not the same: numbers are learned on a scale that each trial "
            "decides on, and a head that is solved leaves out their order. Take another --metric, or "
            "--task.scale linear --task.ranking_weight 0."
        )
    direction: Literal["minimize", "maximize"] = "maximize" if sign_of(metric) > 0 else "minimize"
    bench = Bench(config=fixed, data=dealt(data, scheme, folds), folds=folds, metric=metric, scheme=scheme)
    if nested and folds == 1:
        raise ValueError("nested splits the rows into folds, but the data say which are for validation: leave it out.")
    origin = origin_of(bench)
    with silenced(), terminable():
        ledger = Ledger(file, direction=direction, seed=config.seed)
        _agree(ledger, identity)
        search = _Searching(bench, origin, ledger, limits, budget, jobs, watch, keep)
        found = search.run()
        verdict = search.compare(found.best)
        chosen = replace(found, verdict=verdict)
        keep(chosen)
        watch(Notice(verdict.text))
        if nested:
            chosen = replace(chosen, nested=_nested(bench, origin, ledger, limits, budget, jobs, nested, watch))
    return chosen


def _agree(ledger: Ledger, identity: dict[str, Any]) -> None:
    before = ledger.noted("identity")
    if before is None:
        ledger.note("identity", identity)
        return
    changed = [name for name in identity if before.get(name) != identity[name]]
    if not changed:
        return
    name = changed[0]
    was, now = before.get(name), identity[name]
    if name == "config":
        name = next(option for option in now if was.get(option, now) != now[option])
        was, now = was.get(name), now[name]
    raise ValueError(
        f"the search in this folder had {name} {was!r}, but now it is {now!r}: that is another search. Give the same "
        "data and options to --resume, or start anew with --overwrite."
    )


class _Searching:
    """One search under way, in one or two stages."""

    def __init__(
        self, bench: Bench, origin: Origin, ledger: Ledger, limits: Sequence[str], budget: Budget, jobs: int,
        watch: Watcher, keep: Keep, name: str = "",
    ):  # fmt: skip
        self.bench, self.origin, self.ledger, self.limits = bench, origin, ledger, limits
        self.budget, self.jobs, self.watch, self.keep, self.name = budget, jobs, watch, keep, name
        data, depth = bench.data, origin.encoder.config.num_layers
        self.space = space_of(bench.config, data.kind, data.level, depth, limits)

    def run(self) -> Chosen:
        """Go through the stages; a later one begins with the best of an earlier."""
        trials, until = self.budget
        tunings = next((axis.values for axis in self.space if axis.name == "tuning"), ())
        others = [str(value) for value in tunings if value != "frozen"]
        is_split = "frozen" in tunings and others
        first = Stage(
            name=f"{self.name}{'frozen' if is_split else 'all'}",
            space=self.space,
            start={"tuning": "frozen"} if is_split else {},
            first=(First(settings={}, values=self._usual(self.space, self.bench.config),
                         must_end=True),),
        )  # fmt: skip
        half = math.ceil(trials / 2) if trials and is_split else trials
        asking = self._asking(first, half, _middle(until) if is_split else until)
        found = self._through(asking, ())
        if is_split and (trials is None or trials > len(found.trials)):
            self.watch(Notice(f"Now tunings that move the encoder ({', '.join(others)}): each step passes it, so that "
                              "a trial takes far longer. --space tuning=frozen leaves them out."))  # fmt: skip
            rest = None if trials is None else trials - len(found.trials)
            asking = self._asking(self._tunings(found.trials, others), rest, until)
            found = self._through(asking, found.trials)
        return found

    def _asking(self, stage: Stage, trials: int | None, until: float | None) -> Asking:
        return Asking(self.ledger, stage, trials=trials, until=until)

    def _usual(self, space: Sequence[Axis], config: TrainConfig) -> dict[str, Value]:
        return usual_settings(space, config, self.bench.data.kind, self.bench.data.level)

    def _tunings(self, before: Sequence[Trial], others: list[str]) -> Stage:
        """Tunings, each first by its recipe, with the head and layers of the best trial whose head learns by steps."""
        config = self.bench.config
        own = fixed_by(config)
        known = [t for t in before if t.settings.get("head", own.get("head", STEPWISE[0])) in STEPWISE]
        best = better_of(known, self.ledger.direction)
        parts = ("head", "layers")
        start = {k: v for k, v in (best.settings if best else {}).items() if k.split(".")[0] in parts}
        space = tuple(axis for axis in self.space if axis.name.split(".")[0] not in parts)
        space = tuple(replace(a, values=tuple(others)) if a.name == "tuning" else a for a in space)
        first = []
        for name in others:
            usual = self._usual(space, replace(config, tuning={"name": name}))
            tuning = next(axis.key for axis in space if axis.name == "tuning")
            first.append(First(settings={**start, "tuning": name}, values={**usual, tuning: name}))
        return Stage(name=f"{self.name}tunings", space=space, start=start, first=tuple(first))

    def _through(self, asking: Asking, before: tuple[Trial, ...]) -> Chosen:
        """Do the trials of a stage, and say after each what is known so far."""

        def known() -> Chosen | None:
            told = tuple(replace(t, number=t.number + len(before)) for t in asking.told())
            best = better_of((*before, *told), self.ledger.direction)
            if best is None:
                return None
            return Chosen(metric=self.bench.metric, trials=(*before, *told), best=best, nested=None, importance={},
                          verdict=Verdict(is_better=None))  # fmt: skip

        def tell(number: int, outcome: Outcome) -> None:
            asking.tell(number, outcome)
            last = next((t for t in asking.told() if outcome.state != "stopped" and t.seconds == outcome.seconds), None)
            if last is not None and outcome.state == "failed":
                self.watch(Notice(f"Trial {last.number + len(before)} failed: {outcome.reason.rstrip('.')}."))
                if not before and not last.settings and not last.number:
                    raise ValueError(f"what train does by itself fails already: {outcome.reason}")
            found = known()
            if found is not None:
                self.keep(found)
                done, note = len(found.trials), f"best {self.bench.metric} {found.best.value:.3f}"
                self.watch(Progress("searching", done, max(done, self.budget[0] or done + 1), "trials", note))

        work_through(self.bench, self.origin, self.jobs, ask=asking.ask, hear=asking.hear, tell=tell)
        found = known()
        if found is None:
            raise ValueError("no trial came to an end: give it more time or trials.")
        return replace(found, importance=asking.importance() if not before else {})

    def compare(self, best: Trial) -> Verdict:
        """Train the best and the defaults once more, on other folds, and compare them pair by pair."""
        if not best.settings:
            return Verdict(is_better=False, text="No trial is better than the defaults: use them.")
        seeds = [self.bench.config.seed + n for n in range(1, SEEDS + 1 if self.bench.folds == 1 else 2)]
        pairs = {"best": best.settings, "defaults": {}}
        values = {name: self._again(name, settings, seeds) for name, settings in pairs.items()}
        where = f"{SEEDS} other seeds" if self.bench.folds == 1 else "other folds of the same rows"
        return verdict_of(self.bench.metric, values["best"], values["defaults"], where, self.bench.folds)

    def _again(self, what: str, settings: Settings, seeds: Sequence[int]) -> tuple[float, ...]:
        """The metric with other seeds, which deal other folds; none where a training fails."""
        name = f"{self.name}again {what} {sorted(settings.items())} {list(seeds)}"
        noted = self.ledger.noted(name)
        if noted is not None:
            return tuple(noted)
        values: list[float] = []
        for seed in seeds:
            bench = self.bench.reseeded(seed)
            told: list[Outcome] = []
            jobs = iter([Job(number=0, settings=settings)])
            work_through(
                bench, self.origin, 1, ask=partial(next, jobs, None),
                hear=lambda number, step, value: go_on(step, value),
                tell=lambda number, outcome: told.append(outcome),  # noqa: B023 - called before the next
            )  # fmt: skip
            if told[0].state != "complete":
                return ()
            values += told[0].values
        self.ledger.note(name, values)
        return tuple(values)


def _middle(until: float | None) -> float | None:
    import time

    return None if until is None else (time.monotonic() + until) / 2


def _nested(
    bench: Bench, origin: Origin, ledger: Ledger, limits: Sequence[str], budget: Budget, jobs: int, nested: int,
    watch: Watcher,
) -> Verdict:  # fmt: skip
    """Search on all but one of so many parts, and score what was chosen, and the defaults, on that one."""
    best, defaults = [], []
    for number, member in enumerate(members_of(bench.config, dealt(bench.data, bench.scheme, nested), nested)):
        noted = ledger.noted(f"outer {number} of {nested}")
        if noted is None:
            watch(Notice(f"Part {number + 1} of {nested}: a search without its rows, which score what is chosen."))
            outer = tuple(replace(r, split="test" if r.split == "valid" else "train") for r in member.data.records)
            inner = replace(member.data, records=tuple(r for r in outer if r.split == "train"))
            own = replace(bench, data=dealt(inner, bench.scheme, bench.folds))
            name = f"outer {number} of {nested}/"
            search = _Searching(own, origin, ledger, limits, budget, jobs, watch, lambda chosen: None, name)
            chosen = search.run().best
            whole = dealt(replace(member.data, records=outer), bench.scheme, bench.folds)
            noted = [_scored(bench, whole, settings) for settings in (chosen.settings, {})]
            ledger.note(f"outer {number} of {nested}", noted)
        best.append(noted[0])
        defaults.append(noted[1])
    what = "What the search chooses"
    verdict = verdict_of(bench.metric, best, defaults, f"{nested} parts that it never saw", nested, what)
    watch(Notice(verdict.text))
    return verdict


def _scored(bench: Bench, data: Dataset, settings: Settings) -> float:
    """The metric on test records of a predictor from all folds of the others."""
    config = configured_by(bench.config, settings)
    trained = train_members(config, data, bench.folds, Journal(None), silent)
    value = scores_of(trained.task, trained.outputs, data, "test").get(bench.metric)
    if value is None:
        raise ValueError(
            f"nested cannot score by {bench.metric}, which is not defined on the rows of one of its parts."
        )
    return value
