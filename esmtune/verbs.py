"""Train, evaluate, predict, embed: paths or tables in, results and files out.

Data are read and checked before anything heavy is imported, so that a mistake in a table is
answered at once, and before anything is written.
"""

import inspect
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from esmtune.config import TOKENS_PER_BATCH, Accelerator, Pooling, Precision, TrainConfig
from esmtune.curation import Curated, curate_labeled, curate_training, refuse, skipped
from esmtune.datasets import find_columns, read_rows
from esmtune.events import Notice, Watcher, silent
from esmtune.readers import read
from esmtune.records import Split, Table, Target
from esmtune.registry import nearest
from esmtune.runs import Run, metrics_of, predictions_of, readings, resolved, write_run
from esmtune.writers import Embeddings, check_out, write_embeddings, write_json, write_table

if TYPE_CHECKING:
    from esmtune.ensembles import Ensemble
    from esmtune.members import Trained
    from esmtune.predictor import Predictor


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
    notices: list[str] = []

    def hear(event: Any) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)
        watch(event)

    for text in curated.dataset.notices:
        hear(Notice(text))

    from esmtune.journal import Journal
    from esmtune.members import train_members

    unfinished = None if path is None else path.with_name(f"{path.name}.unfinished")
    if overwrite and not resume and unfinished is not None:
        shutil.rmtree(unfinished, ignore_errors=True)
    journal = Journal(unfinished, config.checkpoint_minutes)
    went_on = journal.open(_identity(config, curated), resume=resume)
    if resume and not went_on:
        hear(Notice(f"There is nothing in {unfinished} to go on with: this run starts at the beginning."))
    logs = Path(tempfile.mkdtemp(prefix="esmtune-logs-")) if config.log and path else None
    try:
        if logs:
            hear(Notice(f"Logs, until they move to {path}: {logs}"))
        trained = train_members(config, curated.dataset, curated.folds, journal, hear, logs)
        run = _run_of(trained, curated, config, tuple(notices), path)
        if path is not None and trained.is_main:
            write_run(run, path, data, curated.dataset, logs=logs, seconds=time.time() - started)
            journal.close()
    except ValueError:
        if not went_on:
            journal.close_if_empty()
        raise
    finally:
        if logs:
            shutil.rmtree(logs, ignore_errors=True)
    return run


def _identity(config: TrainConfig, curated: Curated) -> dict[str, Any]:
    """What must be the same for a run to go on: data and options, but those that change no number."""
    free = ("log", "checkpoint_minutes", "self_contained", "patience")
    return {name: value for name, value in asdict(config).items() if name not in free} | {
        "data_sha256": curated.dataset.sha256
    }


def _run_of(
    trained: "Trained", curated: Curated, config: TrainConfig, notices: tuple[str, ...], path: Path | None
) -> Run:
    several = len(trained.members) > 1
    return Run(
        predictor=trained.predictor,
        last=trained.last,
        metrics=metrics_of(trained, curated.dataset, config),
        history=[
            {"member": member.name} | entry if several else entry
            for member, fitted in zip(trained.members, trained.fitted, strict=True)
            for entry in fitted.history
        ],
        predictions=predictions_of(trained, curated.dataset),
        notices=notices,
        config=resolved(trained.config, curated, trained.predictor.spec),
        path=path,
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


def load(path: str | Path, *, encoder: str | None = None, verify: bool = False) -> "Predictor | Ensemble":
    """Load a predictor, or an ensemble, from a run or a predictor folder. No code from it is run.

    `encoder` says where the encoder's weights are, if they have moved; `verify` recomputes three
    outputs that were saved with the predictor.

    Raises:
        ValueError: if it is no predictor, damaged, from a later version, or its encoder cannot be had.
    """
    from esmtune.ensembles import load_predictor

    return load_predictor(path, encoder=encoder, verify=verify)


def evaluate(
    run: "str | Path | Run | Predictor | Ensemble",
    data: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    target: str | Sequence[str] | None = None,
    sequence: str | None = None,
    id: str | None = None,
    split: str | None = None,
    mask: str | None = None,
    subset: Split | None = None,
    skip_bad_rows: bool = False,
    encoder: str | None = None,
    accelerator: Accelerator = "auto",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    watch: Watcher = silent,
) -> dict[str, Any]:
    """Score a predictor on labeled rows, beside the mean or majority of its training labels.

    `subset` takes the rows of one split. Returns `scores`, `baseline` and the number of `records`.

    Raises:
        BadRowsError: for rows that cannot be used, unless `skip_bad_rows`.
        ValueError: for everything else that is wrong with the data or the run.
    """
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="scores")
    table = read(data)
    predictor = _ready(run, encoder, accelerator, watch)
    task, targets = predictor.task, predictor.spec.targets
    asked = (target,) if isinstance(target, str) else target
    dataset = curate_labeled(
        table,
        find_columns(table, target=asked or _usual_target(targets, table), sequence=sequence, id=id, split=split,
                     mask=mask),
        targets=targets,
        classes={t.name: getattr(part, "classes", ()) for t, (_, part, _) in zip(targets, task.parts(), strict=True)},
        subset=subset,
        max_length=predictor.spec.max_length,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    for text in dataset.notices:
        watch(Notice(text))

    from esmtune.masking import guessed

    sequences = [r.sequence for r in dataset.records]
    answers = predictor.answers(sequences, hide=True, tokens_per_batch=tokens_per_batch, watch=watch)
    outputs = task.average(answers)
    labels = guessed([label for r in dataset.records for label in r.labels], sequences, predictor.masks)
    result = {
        "encoder": predictor.spec.encoder.name,
        "records": len(dataset.records),
        "scores": task.scores(outputs, labels),
        "baseline": task.scores(task.baseline(len(labels)), labels),
    }
    if out is not None:
        write_json(result, Path(out))
    return result


def _usual_target(targets: Sequence[Target], table: Table) -> tuple[str, ...] | None:
    """The columns that a predictor was trained on, if they are there."""
    if targets[0].kind == "mlm":
        return ()
    names = tuple(name for t in targets for name in (t.name.split(",") if t.form == "columns" else (t.name,)))
    return names if all(name in table.frame.columns for name in names) else None


def predict(
    run: "str | Path | Run | Predictor | Ensemble",
    data: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    sequence: str | None = None,
    probabilities: bool = False,
    encoder: str | None = None,
    verify: bool = False,
    accelerator: Accelerator = "auto",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    watch: Watcher = silent,
) -> pl.DataFrame:
    """Predict every row of a table: all its columns, in order, then `prediction`, `probability_CLASS` and `problem`.

    Predictions come in the form of the labels that were learned; those of residues with `probabilities` only
    on request. Several targets have a `prediction_TARGET` each; an ensemble adds `spread`, the standard
    deviation of what its members say. A row that cannot be predicted keeps its place, with an empty
    prediction and the reason under `problem`.

    Raises:
        ValueError: if the table or the run cannot be read, or a column to be added exists already.
    """
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="table")
    table = read(data)
    columns = find_columns(table, sequence=sequence, labeled=False)
    predictor = _ready(run, encoder, accelerator, watch, verify=verify)
    task, targets = predictor.task, predictor.spec.targets
    details = probabilities or predictor.level == "sequence"
    members = len(getattr(predictor, "members", [predictor]))
    example = task.baseline(1).expand(members, 1, -1)
    names = readings(task, targets, example, [1], details=details).columns
    clash = [name for name in (*names, "problem") if name in table.frame.columns]
    if clash:
        raise ValueError(f"{table.source} has a column {clash[0]!r} already, which predict would add. Rename it.")
    rows = read_rows(table, columns, max_length=predictor.spec.max_length, unique_ids=False)
    for text in rows.notices:
        watch(Notice(text))
    row_of = {table.where(row): row for row in range(table.frame.height)}
    problems: list[str | None] = [None] * table.frame.height
    for problem in rows.problems:
        problems[row_of[problem.where]] = problem.reason
    sequences = [r.sequence for r in rows.records]
    answers = predictor.answers(sequences, tokens_per_batch=tokens_per_batch, watch=watch)
    counts = predictor.points(sequences)
    finite = [bool(x.isfinite().all()) for x in answers.split(counts, dim=1)]
    place = {row_of[record.where]: number for number, record in enumerate(rows.records)}
    for number, record in enumerate(rows.records):
        if not finite[number]:
            problems[row_of[record.where]] = "the network gave no finite number"
            del place[row_of[record.where]]
    places = pl.Series([place.get(row) for row in range(table.frame.height)], dtype=pl.Int64)
    found = readings(task, targets, answers, counts, details=details).select(pl.all().gather(places))
    frame = table.frame.hstack(found).with_columns(pl.Series("problem", problems, dtype=pl.String))
    bad = sum(problem is not None for problem in problems)
    if bad:
        first = next(row for row, problem in enumerate(problems) if problem)
        watch(
            Notice(
                f"Rows without a prediction: {bad:,} of {frame.height:,}, "
                f"the first {table.where(first)}: {problems[first]}."
            )
        )
    if out is not None:
        write_table(frame, Path(out))
    return frame


def embed(
    encoder: str | Path,
    data: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    layers: Sequence[int] = (-1,),
    pool: Pooling = "mean",
    precision: Precision = "float32",
    dtype: Literal["float32", "float16"] = "float32",
    sequence: str | None = None,
    id: str | None = None,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
    accelerator: Accelerator = "auto",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    watch: Watcher = silent,
) -> Embeddings:
    """Embed sequences with an encoder, or with the encoder of a run: their mean, their <cls>, or each residue.

    `layers` counts from 0, the embeddings, to the last; negatives count back. `precision` is what
    the encoder computes in, `dtype` what is kept and written.

    >>> embed("random:esm2_t6_8M_UR50D", ["MKTV", "GG"], layers=[0, -1]).vectors.shape
    (2, 2, 320)

    Raises:
        BadRowsError: for rows that cannot be used, unless `skip_bad_rows`.
        ValueError: for everything else that is wrong with the data, the encoder or an option.
    """
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="embeddings")
    table = read(data)
    rows = read_rows(table, find_columns(table, sequence=sequence, id=id, labeled=False), max_length=max_length)
    refuse(rows.problems, skip_bad_rows)
    for text in [*rows.notices, *skipped(rows.problems)]:
        watch(Notice(text))
    if not rows.records:
        raise ValueError(f"no row of {table.source} can be embedded.")

    import numpy as np
    import torch

    from esmtune.embedding import embed_sequences
    from esmtune.predictor import choose_device, find_encoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, source, _ = find_encoder(str(encoder))
    if source.is_random:
        watch(Notice(f"The encoder {source.name} has RANDOM weights: it has seen no protein."))
    sequences = [r.sequence for r in rows.records]
    vectors = embed_sequences(
        network.to(choose_device(accelerator)), sequences, layers=layers, pool=pool, precision=precision,
        dtype=np.dtype(dtype), tokens_per_batch=tokens_per_batch, watch=watch,
    )  # fmt: skip
    about = {
        "encoder": source.name,
        "sha256": source.sha256,
        "layers": " ".join(map(str, layers)),
        "pool": pool,
        "precision": precision,
    }
    lengths = [len(s) for s in sequences] if pool == "residue" else None
    embeddings = Embeddings(ids=[r.id for r in rows.records], vectors=vectors, lengths=lengths, about=about)
    if out is not None:
        write_embeddings(embeddings, Path(out))
    return embeddings


def merge(
    run: "str | Path | Run | Predictor | Ensemble",
    *,
    out: str | Path,
    overwrite: bool = False,
    encoder: str | None = None,
    self_contained: bool = False,
) -> "Predictor | Ensemble":
    """Work the adapters of a predictor (LoRA and its kin) into its encoder's weights, and save that predictor.

    It predicts the same, to rounding, needs no PEFT, and computes no more than an encoder without adapters.

    Raises:
        ValueError: if the run cannot be read or has no adapters, or `out` exists.
    """
    from esmtune.ensembles import Ensemble

    check_out(Path(out), overwrite=overwrite, kind="folder")
    predictor = _ready(run, encoder, "cpu", silent)
    members = predictor.members if isinstance(predictor, Ensemble) else [predictor]
    merged = [member.merged() for member in members]
    new = Ensemble(merged) if isinstance(predictor, Ensemble) else merged[0]
    new.save(Path(out), self_contained=self_contained)
    return new


def _ready(
    run: Any, encoder: str | None, accelerator: Accelerator, watch: Watcher, *, verify: bool = False
) -> "Predictor | Ensemble":
    """A loaded predictor, on its device."""
    from esmtune.ensembles import load_predictor
    from esmtune.predicting import Predicting
    from esmtune.predictor import choose_device

    run = run.predictor if isinstance(run, Run) else run
    predictor = run if isinstance(run, Predicting) else load_predictor(run, encoder=encoder, verify=verify)
    if predictor.spec.encoder.is_random:
        watch(Notice(f"The encoder of this predictor started from RANDOM weights ({predictor.spec.encoder.name})."))
    return predictor.to(choose_device(accelerator))
