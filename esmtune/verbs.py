"""Train, evaluate, predict, embed: paths or tables in, results and files out.

Data are read and checked before anything heavy is imported, so that a mistake in a table is
answered at once, and before anything is written.
"""

import inspect
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from esmtune.config import TOKENS_PER_BATCH, Accelerator, Pooling, Precision, TrainConfig
from esmtune.curation import Curated, curate_labeled, curate_training, refuse, skipped
from esmtune.datasets import find_columns, read_rows
from esmtune.events import Notice, Watcher, silent
from esmtune.readers import read
from esmtune.records import Split
from esmtune.registry import nearest
from esmtune.runs import Run, metrics_of, predictions_of, readings, resolved, write_run
from esmtune.writers import Embeddings, check_out, write_embeddings, write_json, write_table

if TYPE_CHECKING:
    from esmtune.predictor import Predictor
    from esmtune.training import Fitted


def train(
    data: Any, *, out: str | Path | None = None, overwrite: bool = False, watch: Watcher = silent, **options: Any
) -> Run:
    """Fine-tune ESM-2 on a table of labeled sequences.

    `data` is a path, a polars or pandas frame, or a list of (sequence, label) tuples; `out` is a
    folder for the run, which is written whole at the end. The options are those of `TrainConfig`.

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
    if path is not None:
        check_out(path, overwrite=overwrite, kind="folder")
    curated = curate_training(data, config)
    dataset = curated.dataset
    notices: list[str] = []

    def hear(event: Any) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)
        watch(event)

    for text in dataset.notices:
        hear(Notice(text))

    from esmtune.training import fit

    logs = Path(tempfile.mkdtemp(prefix="esmtune-logs-")) if config.log and path else None
    try:
        if logs:
            hear(Notice(f"Logs, until they move to {path}: {logs}"))
        predictor, fitted = fit(config, dataset, hear, logs)
        run = _run_of(predictor, fitted, curated, config, tuple(notices), path)
        if path is not None and fitted.is_main:
            write_run(run, path, data, dataset, logs=logs, seconds=time.time() - started)
    finally:
        if logs:
            shutil.rmtree(logs, ignore_errors=True)
    return run


def _run_of(
    predictor: "Predictor",
    fitted: "Fitted",
    curated: Curated,
    config: TrainConfig,
    notices: tuple[str, ...],
    path: Path | None,
) -> Run:
    dataset = curated.dataset
    return Run(
        predictor=predictor,
        metrics=metrics_of(predictor, dataset, fitted),
        history=fitted.history,
        predictions=predictions_of(predictor.task, dataset, fitted),
        notices=notices,
        config=resolved(config, curated, predictor),
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
        elif known[name] is float and isinstance(value, int):
            given[name] = float(value)
        elif isinstance(value, list):
            given[name] = tuple(value)
        elif name in ("init_skip", "log") and isinstance(value, str):
            given[name] = (value,)
        elif isinstance(value, Path):
            given[name] = str(value)
    return TrainConfig(**given)


def load(path: str | Path, *, encoder: str | None = None, verify: bool = False) -> "Predictor":
    """Load a predictor from a run or a predictor folder. No code from it is run.

    `encoder` says where the encoder's weights are, if they have moved; `verify` recomputes three
    outputs that were saved with the predictor.

    Raises:
        ValueError: if it is no predictor, damaged, from a later version, or its encoder cannot be had.
    """
    from esmtune.predictor import Predictor

    return Predictor.load(path, encoder=encoder, verify=verify)


def evaluate(
    run: "str | Path | Predictor",
    data: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    target: str | None = None,
    sequence: str | None = None,
    id: str | None = None,
    split: str | None = None,
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
    usual = predictor.spec.target if predictor.spec.target in table.frame.columns else None
    dataset = curate_labeled(
        table,
        find_columns(table, target=target or usual, sequence=sequence, id=id, split=split),
        kind=predictor.task.name,
        classes=getattr(predictor.task, "classes", ()),
        subset=subset,
        max_length=predictor.spec.max_length,
        skip_bad_rows=skip_bad_rows,
    )
    for text in dataset.notices:
        watch(Notice(text))
    outputs = predictor.outputs([r.sequence for r in dataset.records], tokens_per_batch=tokens_per_batch, watch=watch)
    labels = [r.label for r in dataset.records]
    task = predictor.task
    result = {
        "encoder": predictor.spec.encoder.name,
        "records": len(labels),
        "scores": task.scores(outputs, labels),
        "baseline": task.scores(task.baseline(len(labels)), labels),
    }
    if out is not None:
        write_json(result, Path(out))
    return result


def predict(
    run: "str | Path | Predictor",
    data: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    sequence: str | None = None,
    encoder: str | None = None,
    verify: bool = False,
    accelerator: Accelerator = "auto",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    watch: Watcher = silent,
) -> pl.DataFrame:
    """Predict every row of a table: all its columns, in order, then `prediction`, `probability_CLASS` and `problem`.

    A row that cannot be predicted keeps its place, with an empty prediction and the reason under `problem`.

    Raises:
        ValueError: if the table or the run cannot be read, or a column to be added exists already.
    """
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="table")
    table = read(data)
    columns = find_columns(table, sequence=sequence, labeled=False)
    predictor = _ready(run, encoder, accelerator, watch, verify=verify)
    clash = [
        name
        for name in (*readings(predictor.task, predictor.task.baseline(1)).columns, "problem")
        if name in table.frame.columns
    ]
    if clash:
        raise ValueError(f"{table.source} has a column {clash[0]!r} already, which predict would add. Rename it.")
    rows = read_rows(table, columns, max_length=predictor.spec.max_length, unique_ids=False)
    for text in rows.notices:
        watch(Notice(text))
    row_of = {table.where(row): row for row in range(table.frame.height)}
    problems: list[str | None] = [None] * table.frame.height
    for problem in rows.problems:
        problems[row_of[problem.where]] = problem.reason
    outputs = predictor.outputs([r.sequence for r in rows.records], tokens_per_batch=tokens_per_batch, watch=watch)
    place = {row_of[record.where]: number for number, record in enumerate(rows.records)}
    for number, record in enumerate(rows.records):
        if not outputs[number].isfinite().all():
            problems[row_of[record.where]] = "the network gave no finite number"
            del place[row_of[record.where]]
    places = pl.Series([place.get(row) for row in range(table.frame.height)], dtype=pl.Int64)
    spread = readings(predictor.task, outputs).select(pl.all().gather(places))
    frame = table.frame.hstack(spread).with_columns(pl.Series("problem", problems, dtype=pl.String))
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


def _ready(
    run: Any, encoder: str | None, accelerator: Accelerator, watch: Watcher, *, verify: bool = False
) -> "Predictor":
    """A loaded predictor, on its device."""
    from esmtune.predictor import Predictor, choose_device

    run = run.predictor if isinstance(run, Run) else run
    predictor = run if isinstance(run, Predictor) else Predictor.load(run, encoder=encoder, verify=verify)
    if predictor.spec.encoder.is_random:
        watch(Notice(f"The encoder of this predictor started from RANDOM weights ({predictor.spec.encoder.name})."))
    return predictor.to(choose_device(accelerator))
