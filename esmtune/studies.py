"""What a search has tried, and what it tries next: Optuna's studies, in one file that a later search goes on with."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from esmtune.space import Axis, Settings, Value
from esmtune.trials import TENTHS, Answer, Outcome, State
from esmtune.workers import Job

AT_RANDOM = 6  # trials of a study before the sampler begins to learn from them
UNPRUNED = 3  # trials of a study that have to be finished before others are given up
UNPRUNED_TENTHS = 3  # of the first fold, in which none is given up
ENOUGH = 8  # finished trials, to say which options mattered


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings that were tried, and what they came to: the metric on each fold and its mean, or why there is none."""

    number: int
    settings: dict[str, Value]
    state: State
    value: float | None
    values: tuple[float, ...]
    seconds: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class First:
    """A trial that is not left to the sampler: its settings, and those, by key, that the sampler learns from."""

    settings: Settings
    values: Mapping[str, Value]
    must_end: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a search: what it chooses from, what was chosen before, and where it begins."""

    name: str
    space: tuple[Axis, ...]
    start: Settings
    first: tuple[First, ...]


class Ledger:
    """The file in which everything stands that was tried; without a file, in memory."""

    def __init__(self, file: Path | None, *, direction: Literal["minimize", "maximize"], seed: int):
        import optuna

        self.direction: Literal["minimize", "maximize"] = direction
        self.seed = seed
        self.storage: Any = optuna.storages.InMemoryStorage()
        if file is not None:
            _mend(file)
            from optuna.storages.journal import JournalFileBackend

            backend = JournalFileBackend(str(file))
            self.storage = optuna.storages.JournalStorage(backend)

    def study(self, name: str) -> Any:
        """A study by its name, begun or gone on with; what was running when it was left is given up."""
        import optuna

        pruner = optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=UNPRUNED_TENTHS)
        study = optuna.create_study(
            study_name=name, storage=self.storage, direction=self.direction, pruner=pruner, load_if_exists=True
        )
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            self.storage.set_trial_user_attr(trial._trial_id, "state", "stopped")
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return study

    def note(self, name: str, value: Any) -> None:
        """Keep a fact with the trials."""
        self.study("notes").set_user_attr(name, value)

    def noted(self, name: str) -> Any:
        """A fact that was kept, or None."""
        return self.study("notes").user_attrs.get(name)


@contextmanager
def silenced() -> Iterator[None]:
    """Keep Optuna from writing to standard error for a while."""
    import warnings

    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


class Asking:
    """A stage under way: which settings come next, whether a trial is worth going on with, and what they came to.

    What comes next depends on the seed, the stage and the finished trials alone, so that a search that was
    stopped goes on as if it had not been.
    """

    def __init__(self, ledger: Ledger, stage: Stage, *, trials: int | None, until: float | None):
        self.ledger, self.stage, self.trials, self.until = ledger, stage, trials, until
        self.study = ledger.study(stage.name)
        self.running: dict[int, Any] = {}

    @property
    def is_over_time(self) -> bool:
        """Whether no more time is left."""
        return self.until is not None and time.monotonic() > self.until

    def ask(self) -> Job | None:
        """The next settings; None if there are to be no more. What has been tried before is not tried again."""
        while (place := self._place()) is not None:
            trial = self._trial(place)
            first = self.stage.first[place] if place < len(self.stage.first) else None
            settings = self._settings(trial, first)
            trial.set_user_attr("place", place)
            trial.set_user_attr("settings", settings)
            self.running[trial.number] = trial
            before = next((t for t in self.told() if t.settings == settings and t.state == "complete"), None)
            if before is None or first is not None:
                return Job(number=trial.number, settings=settings)
            self.tell(trial.number, Outcome(state="complete", values=before.values, reason="tried before"))
        return None

    def _place(self) -> int | None:
        """The first place in the order of trials that nobody has; None if all are taken or the time is over."""
        import optuna

        waiting = optuna.trial.TrialState.WAITING
        found = [t for t in self.study.get_trials(deepcopy=False) if t.state != waiting]
        taken = {t.user_attrs.get("place") for t in found if t.user_attrs.get("state") != "stopped"}
        place = next(n for n in range(len(taken) + 1) if n not in taken)
        over = self.is_over_time and not (place < len(self.stage.first) and self.stage.first[place].must_end)
        return None if over or (self.trials is not None and place >= self.trials) else place

    def _trial(self, place: int) -> Any:
        import optuna

        seed = (self.ledger.seed * 1_000_003 + place) % (1 << 32)
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_RANDOM)
        is_waiting = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        if place < len(self.stage.first) and not is_waiting:
            self.study.enqueue_trial(dict(self.stage.first[place].values))
        return self.study.ask()

    def _settings(self, trial: Any, first: First | None) -> dict[str, Value]:
        if first is not None:
            for axis in self.stage.space:
                if axis.key in first.values:
                    axis.chosen(trial)
            return dict(first.settings)
        settings = dict(self.stage.start)
        for axis in self.stage.space:
            if axis.name not in settings and axis.holds(settings):
                settings[axis.name] = axis.chosen(trial)
        return settings

    def hear(self, number: int, step: int, value: float) -> Answer:
        """Whether a trial is to go on that has come so far."""
        trial = self.running[number]
        trial.report(value, step)
        place = trial.user_attrs["place"]
        if place < len(self.stage.first) and self.stage.first[place].must_end:
            return "go on"
        if self.is_over_time:
            return "stop"
        return "prune" if step % TENTHS != 0 and trial.should_prune() else "go on"

    def tell(self, number: int, outcome: Outcome) -> None:
        """Note what a trial came to."""
        import optuna

        trial = self.running.pop(number)
        trial.set_user_attr("state", outcome.state)
        trial.set_user_attr("values", list(outcome.values))
        trial.set_user_attr("seconds", outcome.seconds)
        trial.set_user_attr("reason", outcome.reason)
        states = {"complete": "COMPLETE", "pruned": "PRUNED"}
        state = optuna.trial.TrialState[states.get(outcome.state, "FAIL")]
        mean = sum(outcome.values) / len(outcome.values) if outcome.state == "complete" else None
        self.study.tell(trial, mean, state=state)

    def told(self) -> list[Trial]:
        """The trials that have come to an end, in their order."""
        ended = [t for t in self.study.get_trials(deepcopy=False) if t.state.is_finished()]
        known = [t for t in ended if t.user_attrs.get("state", "stopped") != "stopped"]
        return [
            Trial(
                number=t.user_attrs["place"], settings=t.user_attrs["settings"], state=t.user_attrs["state"],
                value=t.value if t.user_attrs["state"] == "complete" else None,
                values=tuple(t.user_attrs["values"]), seconds=t.user_attrs["seconds"], reason=t.user_attrs["reason"],
            )
            for t in sorted(known, key=lambda t: t.user_attrs["place"])
        ]  # fmt: skip

    def importance(self) -> dict[str, float]:
        """How much each option mattered, of 1 in all; nothing of few trials.

        Watanabe et al. 2023, PED-ANOVA. https://doi.org/10.24963/ijcai.2023/488
        """
        import optuna

        done = [t for t in self.told() if t.state == "complete"]
        if len(done) < ENOUGH or len({t.value for t in done}) < 2:
            return {}
        found = optuna.importance.get_param_importances(self.study)
        shares: dict[str, float] = {}
        for key, share in found.items():
            name = key.split("|")[0]
            shares[name] = shares.get(name, 0.0) + share
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _mend(file: Path) -> None:
    """Take off a last line that was not written to its end, and a lock that nobody holds any more."""
    if not file.exists():
        return
    Path(f"{file}.lock").unlink(missing_ok=True)
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        with file.open("r+b") as open_file:
            open_file.truncate(len(whole))


def better_of(trials: Sequence[Trial], direction: str) -> Trial | None:
    """The best of the finished trials, of equal ones the first."""
    done = [trial for trial in trials if trial.value is not None]
    if not done:
        return None
    sign = 1 if direction == "maximize" else -1
    return max(done, key=lambda trial: sign * (trial.value or 0.0))
