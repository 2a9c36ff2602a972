"""Evaluate, predict, embed, merge, load: what is done with what was trained."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from esmtune.config import Accelerator, Pooling, Precision
from esmtune.curation import curate_labeled, refuse, skipped
from esmtune.datasets import find_columns, read_rows
from esmtune.events import Notice, Watcher, silent
from esmtune.nearness import nearness_of, read_training
from esmtune.readers import read
from esmtune.records import Split, Table, Target
from esmtune.runs import Run, readings
from esmtune.writers import Embeddings, check_out, write_embeddings, write_json, write_table

if TYPE_CHECKING:
    from esmtune.ensembles import Ensemble
    from esmtune.predictor import Predictor


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
    precision: Precision = "auto",
    tokens_per_batch: int | None = None,
    watch: Watcher = silent,
) -> dict[str, Any]:
    """Score a predictor on labeled rows, beside baselines that learned from its training rows.

    These are the mean or majority, and all others where `run` is a run whose data lie where they lay; the one on
    embeddings where a cache has those of the training rows. `subset` takes the rows of one split. Returns `scores`,
    `baselines`, the number of `records`, and with ten sequences or more `intervals`, `baseline_intervals` and `gain`.

    Raises:
        BadRowsError: for rows that cannot be used, unless `skip_bad_rows`.
        ValueError: for everything else that is wrong with the data or the run.
    """
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="scores")
    table = read(data)
    predictor = _ready(run, encoder, accelerator, precision, watch)
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
    tokens = _tokens(predictor, sequences, tokens_per_batch, watch)
    answers = predictor.answers(sequences, hide=True, tokens_per_batch=tokens, watch=watch)
    outputs = task.average(answers)
    labels = guessed([label for r in dataset.records for label in r.labels], sequences, predictor.masks)
    result: dict[str, Any] = {
        "encoder": predictor.spec.encoder.name,
        "records": len(dataset.records),
        "scores": task.scores(outputs, labels),
    }
    from esmtune.standards import judged

    result |= judged(run.path if isinstance(run, Run) else run, predictor, dataset, labels, outputs, watch)

    def scores(places: list[int]) -> Any:
        return task.scores(outputs[places], [labels[place] for place in places])

    result |= _by_nearness(run, predictor, sequences, scores)
    if out is not None:
        write_json(result, Path(out))
    return result


def _by_nearness(
    run: Any, predictor: "Predictor | Ensemble", sequences: Sequence[str], scores: Callable[[list[int]], Any]
) -> dict[str, Any]:
    """Scores by how near records are to the training sequences, where the run has these."""
    training = run.training if isinstance(run, Run) else ()
    if isinstance(run, str | Path):
        training = read_training(Path(run))
    near = nearness_of(training, sequences)
    if near is None:
        return {}
    counts = np.cumsum([0, *predictor.points(sequences)]).tolist()

    def of_records(within: np.ndarray) -> Any:
        return scores([p for n in np.flatnonzero(within).tolist() for p in range(counts[n], counts[n + 1])])

    every = np.ones(len(sequences), dtype=bool)
    mutations = near.by_mutations(every, of_records)
    found = {"by_identity": near.by_identity(every, of_records)}
    return found | ({"by_mutations": mutations} if mutations else {})


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
    interval: float | None = None,
    conditional: bool = False,
    applicability: bool = False,
    encoder: str | None = None,
    verify: bool = False,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    tokens_per_batch: int | None = None,
    watch: Watcher = silent,
) -> pl.DataFrame:
    """Predict every row of a table: all its columns, in order, then `prediction`, `probability_CLASS` and `problem`.

    Predictions come in the form of the labels that were learned. Several targets have a `prediction_TARGET`
    each; an ensemble adds `spread`, the standard deviation of what its members say. Of residues,
    probabilities and spreads are many numbers, and are there with `probabilities` only. `interval`, such as 0.9,
    adds `lower` and `upper`, between which that share of the truth lies, or of classes a `set` that holds it;
    `conditional` does so for each class by itself. `applicability` adds `distance`, the share of the training
    sequences that are nearer to others of them than this one is, and `notes`. A row that cannot
    be predicted keeps its place, with an empty prediction and the reason under `problem`.

    Raises:
        ValueError: if the table or the run cannot be read, or a column to be added exists already.
    """
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="table")
    table = read(data)
    columns = find_columns(table, sequence=sequence, labeled=False)
    predictor = _ready(run, encoder, accelerator, precision, watch, verify=verify)
    task, targets = predictor.task, predictor.spec.targets
    details = probabilities or predictor.level == "sequence"
    members = sum(member.draws for member in getattr(predictor, "members", [predictor]))
    example = task.baseline(1).expand(members, 1, -1)
    names = readings(task, targets, example, [1], details=details).columns
    if interval is not None:
        from esmtune.reliability import bound_columns, check_level

        for text in check_level(task, targets, predictor.calibration, interval, conditional=conditional):
            watch(Notice(text))
        add_bounds = partial(
            bound_columns, task, targets, predictor.calibration, level=interval, conditional=conditional
        )
        names = [*names, *add_bounds(example, [1]).columns]
    elif conditional:
        raise ValueError("conditional is of intervals: say which, interval=0.9.")
    else:
        add_bounds = None
    if applicability and predictor.references is None:
        raise ValueError(
            "this predictor keeps nothing of its training sequences to compare with: train it anew, with this release "
            "and without --references 0."
        )
    names = [*names, *(("distance", "notes") if applicability else ())]
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
    tokens = _tokens(predictor, sequences, tokens_per_batch, watch)
    answers = predictor.answers(sequences, tokens_per_batch=tokens, watch=watch)
    counts = predictor.points(sequences)
    finite = [bool(x.isfinite().all()) for x in answers.split(counts, dim=1)]
    place = {row_of[record.where]: number for number, record in enumerate(rows.records)}
    for number, record in enumerate(rows.records):
        if not finite[number]:
            problems[row_of[record.where]] = "the network gave no finite number"
            del place[row_of[record.where]]
    places = pl.Series([place.get(row) for row in range(table.frame.height)], dtype=pl.Int64)
    found = readings(task, targets, answers, counts, details=details)
    if add_bounds is not None:
        found = found.hstack(add_bounds(answers, counts))
    if applicability and predictor.references is not None:
        vectors = predictor.vectors(sequences, tokens_per_batch=tokens, watch=watch)
        notes = [predictor.references.notes(sequence) for sequence in sequences]
        distances = predictor.references.distance(vectors)
        found = found.with_columns(
            pl.Series("distance", distances, dtype=pl.Float64), pl.Series("notes", notes, dtype=pl.String)
        )
    found = found.select(pl.all().gather(places))
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
    precision: Precision = "auto",
    dtype: Literal["float32", "float16"] = "float32",
    cache: str | None = None,
    sequence: str | None = None,
    id: str | None = None,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
    accelerator: Accelerator = "auto",
    tokens_per_batch: int | None = None,
    watch: Watcher = silent,
) -> Embeddings:
    """Embed sequences with an encoder, or with the encoder of a run: their mean, their <cls>, or each residue.

    `layers` counts from 0, the embeddings, to the last; negatives count back. `precision` is what
    the encoder computes in, `dtype` what is returned and written. `cache` is a folder that keeps what
    was computed, or none; if it is not given, $ESMTUNE_CACHE or the user's cache folder.

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

    from esmtune.cache import cache_at
    from esmtune.devices import choose_device
    from esmtune.embedding import embed_sequences
    from esmtune.predictor import find_encoder
    from esmtune.provisions import tokens_for_passing

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, source, _ = find_encoder(str(encoder))
    if source.is_random:
        watch(Notice(f"The encoder {source.name} has RANDOM weights: it has seen no protein."))
    sequences = [r.sequence for r in rows.records]
    device = choose_device(accelerator)
    tokens = tokens_for_passing(network, len(layers), list(map(len, sequences)), device, tokens_per_batch, watch)
    vectors = embed_sequences(
        network.to(device), sequences, layers=layers, pool=pool, precision=precision,
        dtype=np.dtype(dtype), tokens_per_batch=tokens, cache=cache_at(cache), name=source.name,
        watch=watch,
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
    predictor = _ready(run, encoder, "cpu", "auto", silent)
    members = predictor.members if isinstance(predictor, Ensemble) else [predictor]
    merged = [member.merged() for member in members]
    new = Ensemble(merged) if isinstance(predictor, Ensemble) else merged[0]
    # They predict the same, to rounding.
    new.calibration, new.scalings, new.references = predictor.calibration, predictor.scalings, predictor.references
    new.save(Path(out), self_contained=self_contained)
    return new


def _ready(
    run: Any,
    encoder: str | None,
    accelerator: Accelerator,
    precision: Precision,
    watch: Watcher,
    *,
    verify: bool = False,
) -> "Predictor | Ensemble":
    """A loaded predictor, on its device."""
    from esmtune.devices import choose_device
    from esmtune.ensembles import load_predictor
    from esmtune.predicting import Predicting

    run = run.predictor if isinstance(run, Run) else run
    predictor = run if isinstance(run, Predicting) else load_predictor(run, encoder=encoder, verify=verify)
    if predictor.spec.encoder.is_random:
        watch(Notice(f"The encoder of this predictor started from RANDOM weights ({predictor.spec.encoder.name})."))
    predictor.precision = precision
    return predictor.to(choose_device(accelerator))


def _tokens(predictor: "Predictor | Ensemble", sequences: Sequence[str], given: int | None, watch: Watcher) -> int:
    """Tokens per pass: as given, else what free memory has room for."""
    from esmtune.provisions import tokens_for_passing

    first = getattr(predictor, "members", [predictor])[0]
    lengths = [len(sequence) for sequence in sequences]
    return tokens_for_passing(first.encoder, len(first.spec.layers), lengths, first.device.type, given, watch)
