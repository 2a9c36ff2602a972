"""Train: a path or a table in, a run and its folder out.

Data are read and checked before anything heavy is imported, so that a mistake in a table is
answered at once, and before anything is written.
"""

import inspect
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmtune.config import EDITION, TrainConfig
from esmtune.curation import Curated, curate_training
from esmtune.events import Notice, Watcher, silent
from esmtune.examination import examine, refuse_errors, said
from esmtune.idle import idle
from esmtune.memory import peak_memory
from esmtune.nearness import nearness_in
from esmtune.readings import predictions_of
from esmtune.registry import nearest
from esmtune.reporting import tell
from esmtune.runs import Run, metrics_of, resolved, write_run
from esmtune.writers import check_out

if TYPE_CHECKING:
    from esmtune.members import Trained


def train(
    data: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    watch: Watcher = silent,
    **options: Any,
) -> Run:
    """Fine-tune ESM-2 on a table of labeled sequences.

    `data` is a path, a polars or pandas frame, or a list of (sequence, label) tuples; `out` is a
    folder for the run, which is written whole at the end. The options are those of `TrainConfig`.
    What an unfinished run needs to go on lies in `OUT.unfinished`; with `resume` it goes on.

    >>> run = train([("MKTV", 0.1), ("GGSG", 0.9), ("MKTI", 0.2), ("GGAG", 1.1)] * 3,
    ...             encoder="random:esm2_t6_8M_UR50D", epochs=1, valid_fraction=0, test_fraction=0)
    >>> len(run.predictor.predict(["MKTL", "GGGG"]))
    2

    Raises:
        BadRowsError: for rows that cannot be used, unless `skip_bad_rows`.
        ValueError: for everything else that is wrong with data or options, before anything is written.
    """
    config = configured(options)
    started = time.time()
    path = Path(out) if out is not None else None
    if resume and path is None:
        raise ValueError("resume goes on with a run that has a folder, but no out is given.")
    if path is not None:
        check_out(path, overwrite=overwrite, kind="folder")
    curated = curate_training(data, config)
    findings = examine(curated)
    refuse_errors(findings)
    notices: list[str] = []

    def hear(event: Any) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)
        watch(event)

    for text in (*curated.dataset.notices, *said(findings), *idle(config, curated)):
        hear(Notice(text))

    check_curve(config, curated)
    from esmtune.curves import curve_members
    from esmtune.journal import Journal
    from esmtune.members import train_members
    from esmtune.processes import rank_outside

    unfinished = None if path is None else path.with_name(f"{path.name}.unfinished")
    journal = Journal(unfinished, config.checkpoint_minutes, writes=rank_outside(config) == 0)
    if overwrite and not resume:
        journal.close()
    went_on = journal.open(_identity(config, curated), resume=resume)
    if resume and not went_on and journal.writes:
        hear(Notice(f"There is nothing in {unfinished} to go on with: this run starts at the beginning."))
    logs = Path(tempfile.mkdtemp(prefix="esmtune-logs-")) if config.log and path else None
    try:
        if logs:
            hear(Notice(f"Logs, until they move to {path}: {logs}"))
        also = partial(curve_members, asked=config, data=curated.dataset, folds=curated.folds)
        trained = train_members(
            config, curated.dataset, curated.folds, journal, hear, logs, also if config.learning_curve else None
        )
        hear(Notice(peak_memory(children=config.devices > 1).text))
        run = _run_of(trained, curated, config, notices, path, hear)
        counts = {f"{name}s": sum(f.severity == name for f in findings) for name in ("warning", "note")}
        found = [asdict(finding) for finding in findings]
        run.metrics["data"] = {"rows": curated.rows, **counts, "findings": found}
        if path is not None and trained.is_main:
            write_run(run, path, data, curated.dataset, logs=logs, seconds=time.time() - started)
            journal.close()
            tell(path, with_page=config.report, watch=hear)
    except ValueError:
        if not went_on:
            journal.close_if_empty()
        raise
    finally:
        if logs:
            shutil.rmtree(logs, ignore_errors=True)
    return run


def check_curve(config: TrainConfig, curated: Curated) -> None:
    """Refuse a learning curve of which nothing could be measured."""
    if config.learning_curve and not curated.dataset.of("test"):
        raise ValueError("learning_curve reads the test rows, but there are none. Set some aside: --test-fraction 0.1.")


def _identity(config: TrainConfig, curated: Curated) -> dict[str, Any]:
    """What must be the same for a run to go on: version, data, and options but those that change no number."""
    free = ("cache", "log", "report", "checkpoint_minutes", "self_contained")
    return {name: value for name, value in asdict(config).items() if name not in free} | {
        "data_sha256": curated.dataset.sha256,
        "version": edition(),
    }


def edition() -> str:
    """Which trainings those of this code are: an unfinished one goes on by the same alone."""
    return f"{version('esmtune')}, edition {EDITION}"


def _run_of(
    trained: "Trained", curated: Curated, config: TrainConfig, notices: list[str], path: Path | None, watch: Watcher
) -> Run:
    from esmtune.reliability import calibrated, calibration_errors, discriminations, mended, reliability

    several, data = len(trained.members) > 1, curated.dataset
    before = calibration_errors(trained, data) if config.scaling != "none" else {}
    trained, scalings, used = mended(trained, data, config.scaling, config.seed)
    trained.predictor.scalings = scalings
    folds = [member.data.of(None) for member in trained.members] if trained.by_fold else ()
    near = nearness_in(data.of(None), wild_type=config.wild_type, coverage=config.coverage, folds=folds)
    trained.predictor.calibration = calibrated(trained, data, config.seed, used, near)
    metrics = metrics_of(trained, curated, config, near, watch)  # which may say something
    return Run(
        predictor=trained.predictor,
        last=trained.last,
        metrics=metrics | reliability(trained, data, trained.predictor.calibration, before),
        history=[
            {"member": member.name} | entry if several else entry
            for member, fitted in zip(trained.members, trained.fitted, strict=True)
            for entry in fitted.history
        ],
        predictions=predictions_of(trained, data, near),
        curves=discriminations(trained, data),
        notices=tuple(notices),
        config=resolved(trained.config, curated, trained.predictor.spec),
        path=path,
        training=tuple(r.sequence for r in curated.dataset.of("train")),
    )


# Editors and help() show the options by their names.
_options = [
    inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
    for f in fields(TrainConfig)
]
_signature = inspect.signature(train)
_own = [p for p in _signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
train.__signature__ = _signature.replace(parameters=_own + _options)  # pyright: ignore[reportFunctionMemberAccess]


def configured(options: Mapping[str, Any]) -> TrainConfig:
    """Make a configuration of options by name; a part may be given by its name alone.

    >>> configured({"head": "linear"}).head
    {'name': 'linear'}

    Raises:
        ValueError: for an option that does not exist, naming the nearest.
    """
    known = {f.name: f.type for f in fields(TrainConfig)}
    for name in options:
        if name not in known:
            raise ValueError(f"train has no option {name!r}.{nearest(name, known)} It has: {', '.join(known)}.")
    given = dict(options)
    for name, value in options.items():
        if name in ("task", "head", "tuning") and isinstance(value, str):
            given[name] = {"name": value}
        elif known[name] in (float, float | None) and isinstance(value, int) and not isinstance(value, bool):
            given[name] = float(value)
        elif isinstance(value, list):
            given[name] = tuple(value)
        elif name in ("target", "init_skip", "log") and isinstance(value, str):
            given[name] = (value,)
        elif isinstance(value, Path):
            given[name] = str(value)
    return TrainConfig(**given)
