"""Search: which options suit a table best, by trials on folds of what is not for the test."""

import csv
import io
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmtune.config import SEARCH_FOLDS, SEARCH_TRIALS, TrainConfig
from esmtune.curation import Curated, curate_training
from esmtune.events import Notice, Watcher, silent
from esmtune.fitting import configured, edition
from esmtune.runs import run_toml
from esmtune.schemes import Scheme
from esmtune.writers import check_out, whole_file, write_json

if TYPE_CHECKING:
    from esmtune.choosing import Chosen
    from esmtune.studies import Trial
    from esmtune.verdicts import Verdict

FILE = "trials.log"


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search found: all trials, the best, how it compares with the defaults, and the configuration to train."""

    metric: str
    folds: int
    trials: "tuple[Trial, ...]"
    best: "Trial"
    verdict: "Verdict"
    nested: "Verdict | None"
    importance: dict[str, float]
    config: TrainConfig
    notices: tuple[str, ...]
    path: Path | None = None

    @property
    def ranked(self) -> "list[Trial]":
        """The trials that came to an end, the best first."""
        from esmtune.metrics import sign_of

        done = [trial for trial in self.trials if trial.value is not None]
        sign = -sign_of(self.metric)
        return sorted(done, key=lambda trial: sign * (trial.value or 0.0))

    @property
    def defaults(self) -> "Trial":
        """The trial of what train does by itself."""
        return self.trials[0]


def search(
    data: Any,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    jobs: int = 1,
    space: Sequence[str] | str = (),
    nested: int | None = None,
    watch: Watcher = silent,
    **options: Any,
) -> Search:
    """Find the options that suit a table best; the test rows are not read.

    `data` and the options are those of `train`; what is given is fixed. Each trial trains on all but one of some
    folds of the other rows (`folds`, 5) and is validated on that one, each in turn, unless the data say which
    rows are for validation. The first trial is what `train` does by itself; the best is compared with it on other
    folds. `space` limits what is tried: `["head=linear,mlp", "weight_decay=1e-4..1e-2"]`. With `nested` the whole
    search is also done on all but one of so many parts, and what it chose scored on that one.

    `out` is a folder that always holds what is known so far: `best.toml` for `esmtune train --config`, `trials.csv`,
    `search.json` and the trials as Optuna keeps them, with which `resume` goes on, to more trials or minutes too.

    >>> found = search([("MKTV", 0.1), ("GGSG", 0.9), ("MKTI", 0.2), ("GGAG", 1.1)] * 3, trials=2, folds=2,
    ...                encoder="random:esm2_t6_8M_UR50D", head="ridge", test_fraction=0, space="layers=1,2")
    >>> len(found.trials), found.metric
    (2, 'spearman')

    Raises:
        BadRowsError: for rows that cannot be used, unless `skip_bad_rows`.
        ValueError: for everything else that is wrong with data or options, and where Optuna is not installed.
    """
    config = configured(options)
    limits = [space] if isinstance(space, str) else list(space)
    _check(config, trials, minutes, jobs, nested)
    trials = SEARCH_TRIALS if trials is None and minutes is None else trials
    path = Path(out) if out is not None else None
    if resume and path is None:
        raise ValueError("resume goes on with a search that has a folder, but no out is given.")
    goes_on = bool(resume and path and (path / FILE).exists())
    if path is not None and not goes_on:
        check_out(path, overwrite=overwrite, kind="folder")
    curated, folds = _curated(data, config)
    notices: list[str] = []

    def hear(event: Any) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)
        watch(event)

    for text in curated.dataset.notices:
        hear(Notice(text))
    if path is not None and not goes_on:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    if resume and not goes_on:
        hear(Notice(f"There is nothing in {path} to go on with: this search starts at the beginning."))

    from esmtune.choosing import choose

    identity = {"config": asdict(config), "space": limits, "nested": nested, "data_sha256": curated.dataset.sha256,
                "version": edition()}  # fmt: skip
    budget = (trials, None if minutes is None else time.monotonic() + 60 * minutes)
    keep = partial(_keep, path=path, data=data, curated=curated, config=config)
    try:
        chosen = choose(
            config, curated.dataset, folds, _scheme(config, curated), limits=limits, budget=budget, jobs=jobs,
            nested=nested, file=None if path is None else path / FILE, identity=json.loads(json.dumps(identity)),
            keep=keep, watch=hear,
        )  # fmt: skip
    except ValueError:
        if path is not None and not goes_on and not (path / "trials.csv").exists():
            shutil.rmtree(path, ignore_errors=True)
        raise
    found = Search(
        metric=chosen.metric, folds=folds, trials=chosen.trials, best=chosen.best, verdict=chosen.verdict,
        nested=chosen.nested, importance=chosen.importance,
        config=_best_config(config, curated, chosen.best), notices=tuple(notices), path=path,
    )  # fmt: skip
    if path is not None:
        _keep(chosen, path=path, data=data, curated=curated, config=config)
        write_json({**asdict(chosen), "folds": folds, "notices": notices}, path / "search.json")
    return found


def _check(config: TrainConfig, trials: int | None, minutes: float | None, jobs: int, nested: int | None) -> None:
    try:
        import optuna  # noqa: F401 - whether it is there
    except ModuleNotFoundError:
        raise ValueError("search needs Optuna: pip install 'esmtune[search]'.") from None
    for name, value, least in (("trials", trials, 1), ("jobs", jobs, 1), ("nested", nested, 2)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, expected {least} or more.")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ValueError(f"minutes is {minutes}, expected more than 0.")
    if config.devices * config.num_nodes > 1:
        raise ValueError(
            "search trains each trial in one process, but devices or num_nodes is more: take jobs instead."
        )
    if (config.task or {}).get("name") == "mlm":
        raise ValueError("search compares predictions with labels, of which task mlm has none: leave out task.")
    if config.log:
        raise ValueError("log is of one run, and a search has many: leave out log.")


def _curated(data: Any, config: TrainConfig) -> tuple[Curated, int]:
    """The dataset without its test records, and the number of folds; 1 if the data say what is for validation.

    It is split as train would split it, so that the rows left out are those that train takes for the test, and those
    it keeps to calibrate the winner.
    """
    curated = curate_training(data, config)
    dataset = curated.dataset
    if dataset.kind == "mlm":
        raise ValueError("search compares predictions with labels, but there are none.")
    records = tuple(r for r in dataset.records if r.split != "test" and r.is_labeled)
    if config.folds is None and not curated.says_valid:
        records = tuple(replace(r, split="train") for r in records if r.split != "calibration")
        folds = min(SEARCH_FOLDS, max(2, len({r.sequence for r in records}) // 2))  # of two sequences or more
    else:
        folds = curated.folds
        if folds == 1 and not any(r.split == "valid" for r in records):
            raise ValueError("there are no validation rows to choose by: leave out --folds, or --valid-fraction 0.")
    if len({r.sequence for r in records}) < 2:
        raise ValueError("there are fewer than 2 sequences that are not for the test: nothing can be validated.")
    return replace(curated, dataset=replace(dataset, records=records)), folds


def _scheme(config: TrainConfig, curated: Curated) -> Scheme:
    """How the rows were split, by which folds are dealt too."""
    return Scheme(
        method=str(curated.split.get("method", "random")), seed=config.seed, identity=curated.identity,
        coverage=config.coverage, wild_type=config.wild_type,
    )  # fmt: skip


def _best_config(config: TrainConfig, curated: Curated, best: "Trial") -> TrainConfig:
    """The configuration of a trial, with the columns that were found."""
    from esmtune.space import configured_by

    columns, dataset = curated.columns, curated.dataset
    task = config.task or {}
    named = {**task, "name": dataset.kind} if dataset.kind != "multitask" else config.task
    return configured_by(
        replace(config, target=columns.target, sequence=columns.sequence, id=columns.id, split=curated.split_asked,
                mask=columns.mask, level=dataset.level, task=named),
        best.settings,
    )  # fmt: skip


def _keep(chosen: "Chosen", *, path: Path | None, data: Any, curated: Curated, config: TrainConfig) -> None:
    """Write what is known so far: the best configuration and all trials."""
    if path is None:
        return
    best = chosen.best
    said = [f"trial {best.number} of {len(chosen.trials)}: {chosen.metric} {best.value:.4f} on validation folds"]
    said += [chosen.verdict.text] if chosen.verdict.text else []
    text = run_toml(_best_config(config, curated, best), data, said)
    with whole_file(path / "best.toml") as file:
        file.write_text(text, encoding="utf-8")
    names = list(dict.fromkeys(name for trial in chosen.trials for name in trial.settings))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["trial", "state", chosen.metric, "folds", "seconds", *names, "reason"])
    for t in chosen.trials:
        settings = [t.settings.get(name, "") for name in names]
        value = "" if t.value is None else t.value
        writer.writerow([t.number, t.state, value, ";".join(map(str, t.values)), t.seconds, *settings, t.reason])
    with whole_file(path / "trials.csv") as file:
        file.write_text(table.getvalue(), encoding="utf-8")
