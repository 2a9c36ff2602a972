"""The shell: its entry, and the verbs. Beside it only terminal and surveys print or exit."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

import esmtune
import esmtune.surveys  # its commands
from esmtune import events
from esmtune.arguments import prepared
from esmtune.config import Pooling, Split, TrainConfig
from esmtune.terminal import (
    Bars,
    Budget,
    Device,
    Encoder,
    Identifier,
    Overwrite,
    Products,
    Sequence,
    Skip,
    app,
    messages,
    print_bins,
    print_comparison,
    print_curve,
    print_scores,
    results,
)

DIVERGED = 3  # exit code of a run whose numbers ceased to be finite
OUT_OF_MEMORY = (
    "memory ran out; nothing half-written is left. `esmtune plan` with the options of a training shows what fits. Else "
    "take smaller passes (--tokens-per-batch 256), a smaller encoder, or fewer rows at a time."
)


def main() -> None:
    """Run a command; user errors end with a sentence on standard error and exit code 2."""
    try:
        run(sys.argv[1:])
    except (ValueError, OSError) as error:
        if "ESMTUNE_TRACEBACK" in os.environ:
            raise
        messages.quiet = False
        messages.print(f"esmtune: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        from esmtune.shortage import is_out_of_memory

        if "ESMTUNE_TRACEBACK" in os.environ or not is_out_of_memory(error):
            raise
        messages.print(f"esmtune: {OUT_OF_MEMORY}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        messages.print("esmtune: stopped; nothing half-written is left. The same command with --resume goes on.")
        sys.exit(130)
    except events.Terminated:
        messages.print("esmtune: asked to stop, and saved. The same command with --resume goes on.")
        sys.exit(143)


def run(arguments: list[str]) -> None:
    """Run a command with its arguments."""
    rest, app.config = prepared(arguments)
    app(rest)


@app.command
def train(
    data: str,
    *,
    out: Annotated[Path | None, Parameter(help="A new folder for the run. [default: runs/NAME]")] = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, Parameter(help="Go on with a run that was stopped, to the same result.")] = False,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008 - frozen
) -> None:
    """Fine-tune an ESM-2 on a table of labeled sequences, and evaluate it.

    DATA is CSV, TSV, Parquet, JSON lines or FASTA. --config RUN/run.toml takes options from a file.
    """
    if config.devices * config.num_nodes > 1:
        from esmtune.processes import rank_outside

        messages.quiet = results.quiet = rank_outside(config) > 0  # of those that torchrun started one speaks
    usual = Path("runs") / Path(data).name.split(".")[0]
    folder = out or (_stopped(usual) if resume else None) or _free(usual)
    with Bars() as bars:
        done = esmtune.train(data, out=folder, overwrite=overwrite, resume=resume, watch=bars, **vars(config))
    for split in ("valid", "test"):
        if split in done.metrics:
            print_comparison(f"{split}: {done.metrics['records'][split]:,} records", done.metrics, split)
    print_bins(done.metrics.get("by_identity", {}).get("test", []))
    print_bins(done.metrics.get("by_mutations", {}).get("test", []))
    if "learning_curve" in done.metrics:
        print_curve(done.metrics)
    results.print(f"Run: {folder}", soft_wrap=True)
    if done.diverged:
        sys.exit(DIVERGED)


@app.command
def evaluate(
    run: str,
    data: str,
    *,
    out: Annotated[Path | None, Parameter(help="Also write the scores to this .json file.")] = None,
    overwrite: Overwrite = False,
    target: Annotated[
        tuple[str, ...] | None, Parameter(help="The column with the labels. [default: as in training]")
    ] = None,
    sequence: Sequence = None,
    id: Identifier = None,
    split: Annotated[
        str | None, Parameter(help="The column that says of which subset a row is, or RUN/split.csv.")
    ] = None,
    mask: Annotated[str | None, Parameter(help="The column that says which residues count.")] = None,
    subset: Annotated[Split | None, Parameter(help="Only the rows of this split.")] = None,
    skip_bad_rows: Skip = False,
    encoder: Encoder = None,
    accelerator: Device = "auto",
    precision: Products = "auto",
    tokens_per_batch: Budget = None,
) -> None:
    """Score a predictor on labeled rows, beside baselines."""
    with Bars() as bars:
        result = esmtune.evaluate(
            run, data, out=out, overwrite=overwrite, target=target, sequence=sequence, id=id, split=split,
            mask=mask, subset=subset, skip_bad_rows=skip_bad_rows, encoder=encoder, accelerator=accelerator,
            precision=precision, tokens_per_batch=tokens_per_batch, watch=bars,
        )  # fmt: skip
    print_scores(f"{result['records']:,} records", result["scores"], result["baselines"], result.get("intervals"))
    if "gain" in result:
        results.print(result["gain"]["text"], markup=False)
    print_bins(result.get("by_identity", []))
    print_bins(result.get("by_mutations", []))


@app.command
def predict(
    run: str,
    data: str,
    *,
    out: Annotated[
        Path | None, Parameter(help="A .csv, .tsv, .parquet or .jsonl file. [default: printed as CSV]")
    ] = None,
    overwrite: Overwrite = False,
    sequence: Sequence = None,
    probabilities: Annotated[bool, Parameter(help="Of residues too, probabilities and spreads.")] = False,
    interval: Annotated[
        float | None, Parameter(help="Also lower and upper, or a set of classes, that hold this share of the truth.")
    ] = None,
    applicability: Annotated[
        bool, Parameter(help="Also how near each row is to the training data, and what is new in it.", negative="")
    ] = False,
    prefix: Annotated[str, Parameter(help="What the names of added columns begin with. [default: nothing]")] = "",
    conditional: Annotated[
        bool, Parameter(help="--interval for each class by itself, or by identity to training.", negative="")
    ] = False,
    encoder: Encoder = None,
    verify: Annotated[bool, Parameter(help="First recompute three outputs saved with the predictor.")] = False,
    accelerator: Device = "auto",
    precision: Products = "auto",
    tokens_per_batch: Budget = None,
) -> None:
    """Predict every row of a table; all rows and columns come back, in order."""
    with Bars() as bars:
        frame = esmtune.predict(
            run, data, out=out, overwrite=overwrite, sequence=sequence, probabilities=probabilities,
            interval=interval, conditional=conditional, applicability=applicability, prefix=prefix, encoder=encoder,
            verify=verify, accelerator=accelerator, precision=precision, tokens_per_batch=tokens_per_batch, watch=bars,
        )  # fmt: skip
    if out is None:
        from esmtune.writers import flat

        sys.stdout.write(flat(frame, nested=False).write_csv())
    else:
        results.print(f"Predictions: {out} ({frame.height:,} rows)", soft_wrap=True)


@app.command
def embed(
    encoder: str,
    data: str,
    *,
    out: Annotated[Path, Parameter(help="A .npz, .parquet, .h5 or .safetensors file.")],
    overwrite: Overwrite = False,
    layers: Annotated[
        tuple[int, ...],
        Parameter(help="0 is the embeddings, -1 the last layer, after the final norm."),
    ] = (-1,),
    pool: Annotated[Pooling, Parameter(help="A vector a sequence (mean, cls), or one a residue.")] = "mean",
    precision: Products = "auto",
    dtype: Annotated[Literal["float32", "float16"], Parameter(help="What is written.")] = "float32",
    cache: Annotated[str | None, Parameter(help="A folder that keeps embeddings between calls, or none.")] = None,
    sequence: Sequence = None,
    id: Identifier = None,
    max_length: Annotated[int | None, Parameter(help="Cut sequences to their first so many residues.")] = None,
    skip_bad_rows: Skip = False,
    accelerator: Device = "auto",
    tokens_per_batch: Budget = None,
) -> None:
    """Embed sequences with an encoder, or with the encoder of a run."""
    with Bars() as bars:
        embeddings = esmtune.embed(
            encoder, data, out=out, overwrite=overwrite, layers=layers, pool=pool, precision=precision, dtype=dtype,
            cache=cache,
            sequence=sequence, id=id, max_length=max_length, skip_bad_rows=skip_bad_rows, accelerator=accelerator,
            tokens_per_batch=tokens_per_batch, watch=bars,
        )  # fmt: skip
    results.print(f"Embeddings: {out} ({len(embeddings.ids):,} sequences, {embeddings.vectors.shape})", soft_wrap=True)


@app.command
def merge(
    run: str,
    *,
    out: Annotated[Path, Parameter(help="A new folder for the predictor.")],
    overwrite: Overwrite = False,
    encoder: Encoder = None,
    self_contained: Annotated[bool, Parameter(help="Save the whole encoder, so that it needs no other file.")] = False,
) -> None:
    """Work the adapters of a run (LoRA and its kin) into the encoder's weights; it predicts the same, to rounding."""
    with Bars() as bars:
        esmtune.merge(run, out=out, overwrite=overwrite, encoder=encoder, self_contained=self_contained, watch=bars)
    results.print(f"Predictor: {out}", soft_wrap=True)


def _free(folder: Path) -> Path:
    """The first name of folder, folder-2, folder-3 ... that is not taken."""
    number = 1
    while True:
        name = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not name.exists() and not name.with_name(f"{name.name}.unfinished").exists():
            return name
        number += 1


def _stopped(folder: Path) -> Path | None:
    """The newest run of this name that was stopped."""
    found = [path for path in folder.parent.glob(f"{folder.name}*.unfinished") if path.is_dir()]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return newest.with_suffix("") if newest else None
