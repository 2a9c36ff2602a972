"""Commands of the shell that look at data, devices and runs, and train nothing that is kept."""

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

import esmtune
from esmtune.config import SPLIT_METHODS, Accelerator, Level, TrainConfig
from esmtune.listings import print_contents, print_findings, print_plan, print_rows, trials_table
from esmtune.terminal import Bars, Identifier, Overwrite, Sequence, Skip, app, messages, results


@app.command
def cache(
    *,
    folder: Annotated[str | None, Parameter(help="Where it is. [default: $ESMTUNE_CACHE, else the user's]")] = None,
    clear: Annotated[bool, Parameter(help="Delete what it holds.", negative="")] = False,
) -> None:
    """Show what is kept of frozen encoders between runs, or clear it."""
    from esmtune.cache import cache_at

    found = cache_at(folder)
    if found is None:
        results.print("Cache: none")
        return
    if clear:
        found.clear()
    kept = found.contents()
    total = sum(entry.bytes for entry in kept) / 2**30
    summary = f"{total:,.2f} of at most {found.limit / 2**30:,.2f} GiB" if kept else "it holds nothing"
    results.print(f"Cache: {found.folder}, {summary}", soft_wrap=True)
    if kept:
        table = Table(box=None, pad_edge=False)
        for column in ("encoder", "pool", "layers", "precision", "sequences", "MiB", "last used"):
            table.add_column(column, justify="right" if column in ("sequences", "MiB") else "left", overflow="fold")
        for entry in sorted(kept, key=lambda entry: -entry.used):
            day = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d")
            layers = ",".join(map(str, entry.layers))
            table.add_row(
                entry.encoder, entry.pool, layers, entry.precision, f"{entry.sequences:,}",
                f"{entry.bytes / 2**20:,.1f}", day,
            )  # fmt: skip
        results.print(table)


@app.command
def doctor(*, accelerator: Annotated[Accelerator, Parameter(help="Only this one. [default: all]")] = "auto") -> None:
    """Check that the devices here compute right numbers, and time them; exit code 1 if what would be used does not."""
    with Bars() as bars:
        found = esmtune.doctor(accelerator, watch=bars)
    table = Table(box=None, pad_edge=False)
    for column in ("where", "attention", "error", "forward", "backward", "verdict"):
        table.add_column(column, justify="right" if column in ("forward", "backward") else "left", overflow="fold")
    for each in found.findings:
        forward, both = (f"{x:,.1f}" for x in each.microseconds) if each.microseconds else ("", "")
        table.add_row(
            f"{each.device} {each.precision}", f"auto: {each.takes}" if each.takes else each.way,
            f"{max(each.errors.values()):.0e}" if each.errors else "", forward, both,
            f"{each.verdict}: {each.why}" if each.why else each.verdict,
        )  # fmt: skip
    results.print(table)
    results.print(
        "Errors are shares of the largest value; times are of one layer's attention, in microseconds a residue."
    )
    used = f"{found.device} in {found.precision}"
    if not found.is_healthy:
        messages.print(
            f"esmtune: {used}, which would be used, computes wrong numbers: do not use it.", style="red", soft_wrap=True
        )
        sys.exit(1)
    results.print(f"Used unless asked otherwise: {used}, which passes.", soft_wrap=True)


@app.command
def check(
    data: str,
    *,
    out: Annotated[Path | None, Parameter(help="Also write what is found to this .json file.")] = None,
    overwrite: Overwrite = False,
    target: Annotated[tuple[str, ...] | None, Parameter(help="The column, or columns, with the labels.")] = None,
    sequence: Sequence = None,
    id: Identifier = None,
    split: Annotated[str | None, Parameter(help="The column that says train, valid or test.")] = None,
    weight: Annotated[str | None, Parameter(help="A column that says how much each row counts.")] = None,
    mask: Annotated[str | None, Parameter(help="The column that says which residues count.")] = None,
    level: Annotated[Level | None, Parameter(help="Whether labels belong to sequences or to residues.")] = None,
    task: Annotated[str | None, Parameter(name="--task.name", help="What the labels are, if not to be told.")] = None,
    order: Annotated[
        str | None, Parameter(name="--task.order", help="Grades that are words, from lowest to highest: low,high.")
    ] = None,
    valid: Annotated[str | None, Parameter(help="A file with the validation rows.")] = None,
    test: Annotated[str | None, Parameter(help="A file with the test rows.")] = None,
    max_length: Annotated[int | None, Parameter(help="Cut sequences to their first so many residues.")] = None,
    seed: Annotated[int, Parameter(help="Fixes the split, where one is drawn.")] = 0,
    skip_bad_rows: Skip = False,
) -> None:
    """Look at a table before training: what it holds, and what is odd about it.

    Exit code 1 where something stops a training. docs/data-checks.md explains every finding.
    """
    if order and not task:
        raise ValueError(f"--task.order {order} is of grades: say --task ordinal too.")
    asked = {"name": task, "order": order} if order else task
    found = esmtune.check(
        data, out=out, overwrite=overwrite, target=target, sequence=sequence, id=id, split=split, weight=weight,
        mask=mask, level=level, task=asked, valid=valid, test=test, max_length=max_length, seed=seed,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    print_contents(found)
    print_findings(found)
    if found.has_errors:
        sys.exit(1)


@app.command
def report(
    run: str,
    *,
    overwrite: Annotated[bool, Parameter(help="Write the model card anew, too.")] = False,
) -> None:
    """Make the report of a run anew: RUN/report.html, and the model card RUN/README.md if there is none."""
    with Bars() as bars:
        page = esmtune.report(run, overwrite=overwrite, watch=bars)
    results.print(f"Report: {page}", soft_wrap=True, markup=False)


@app.command
def compare(
    runs: Annotated[tuple[str, ...], Parameter(help="The folders of two runs or more.", negative="")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Also write it to this .html or .json file.")] = None,
    overwrite: Overwrite = False,
    seed: Annotated[int, Parameter(help="Fixes the resamples.")] = 0,
) -> None:
    """Compare runs on the test records that they share: scores, and tests of each pair."""
    from esmtune.comparing import pairs_tables, scores_rows

    found = esmtune.compare(*runs, out=out, overwrite=overwrite, seed=seed)
    for note in found.notes:
        messages.print(note, soft_wrap=True, markup=False)
    for target in found.scores:
        print_rows(scores_rows(found, target))
    for rows in pairs_tables(found):
        print_rows(rows)
    for pair in found.pairs:
        results.print(pair.text, soft_wrap=True, markup=False)
    if out is not None:
        results.print(f"Comparison: {out}", soft_wrap=True, markup=False)


@app.command
def split(
    data: str,
    *,
    out: Annotated[Path, Parameter(help="A .csv, .tsv, .parquet or .jsonl file.")],
    overwrite: Overwrite = False,
    method: Annotated[
        str | None,
        Parameter(
            help=f"{', '.join(SPLIT_METHODS)}, RUN/split.csv. [default: identity if sequences are related, or random]"
        ),
    ] = None,
    column: Annotated[str | None, Parameter(help="Its name. [default: split, or fold_1 ...]")] = None,
    target: Annotated[str | None, Parameter(help="The column with the labels, to deal them alike.")] = None,
    sequence: Sequence = None,
    identity: Annotated[float | None, Parameter(help="Sequences so alike are related. [default: 0.3]")] = None,
    coverage: Annotated[float, Parameter(help="How much of the shorter one is alike then.")] = TrainConfig.coverage,
    wild_type: Annotated[str | None, Parameter(help="What variants differ from. [default: told from them]")] = None,
    mutations: Annotated[int | None, Parameter(help="Train on variants with at most so many.")] = None,
    time: Annotated[str | None, Parameter(help="The column with the times, for --method time.")] = None,
    valid_fraction: Annotated[float, Parameter(help="Of the rows.")] = TrainConfig.valid_fraction,
    test_fraction: Annotated[float, Parameter(help="Of the rows.")] = TrainConfig.test_fraction,
    folds: Annotated[int | None, Parameter(help="Instead of one split: a column fold_N for each.")] = None,
    repeats: Annotated[int, Parameter(help="Deal the folds so many times anew.")] = 1,
    seed: Annotated[int, Parameter(help="Of what is drawn.")] = 0,
) -> None:
    """Split a table into train, valid and test; all rows and columns come back, in order."""
    with Bars() as bars:
        frame = esmtune.split(
            data, out=out, overwrite=overwrite, method=method, column=column, target=target, sequence=sequence,
            identity=identity, coverage=coverage, wild_type=wild_type, mutations=mutations, time=time,
            valid_fraction=valid_fraction, test_fraction=test_fraction, folds=folds, repeats=repeats, seed=seed,
            watch=bars,
        )  # fmt: skip
    results.print(f"Split: {out} ({frame.height:,} rows)", soft_wrap=True)


@app.command
def plan(
    data: str,
    *,
    out: Annotated[Path | None, Parameter(help="Also write the plan to this .json file.")] = None,
    overwrite: Overwrite = False,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008 - frozen
) -> None:
    """Tell what a training would take, and what fits if it does not; the options are those of train.

    Exit code 1 where it does not fit into memory. Nothing is trained or kept.
    """
    with Bars() as bars:
        found = esmtune.plan(data, out=out, overwrite=overwrite, watch=bars, **vars(config))
    print_plan(found)
    if not found.fits:
        sys.exit(1)


@app.command
def search(
    data: str,
    *,
    trials: Annotated[int | None, Parameter(help="Try so many settings. [default: 20, unless --minutes]")] = None,
    minutes: Annotated[float | None, Parameter(help="Try settings for so long.")] = None,
    out: Annotated[Path | None, Parameter(help="A folder for what is found. [default: runs/NAME-search]")] = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, Parameter(help="Go on with a search that was stopped, or to more trials.")] = False,
    jobs: Annotated[int, Parameter(help="Trials side by side, each in a process of its own.")] = 1,
    space: Annotated[
        tuple[str, ...],
        Parameter(help="Limits of what is tried: tuning=frozen,lora head_learning_rate=1e-4..1e-3."),
    ] = (),
    nested: Annotated[int | None, Parameter(help="Also search on all but one of so many parts, and score it.")] = None,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008 - frozen
) -> None:
    """Try settings on folds of a table, and write the best as a configuration to train.

    The test rows are not read. An option of train that is given is fixed; the others are chosen.
    """
    folder = out or Path("runs") / f"{Path(data).name.split('.')[0]}-search"
    with Bars() as bars:
        found = esmtune.search(
            data, trials=trials, minutes=minutes, out=folder, overwrite=overwrite, resume=resume, jobs=jobs,
            space=space, nested=nested, watch=bars, **vars(config),
        )  # fmt: skip
    results.print(trials_table(found))
    if found.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found.importance.items() if share >= 0.01)
        results.print(f"What mattered, of the first stage: {shares}", soft_wrap=True)
    results.print(found.verdict.text, soft_wrap=True)
    if found.nested:
        results.print(found.nested.text, soft_wrap=True)
    results.print(f"To train the best: esmtune train --config {folder / 'best.toml'}", soft_wrap=True)
