"""Load what was trained, and make it ready for what it is to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmtune.config import Accelerator, Precision
from esmtune.events import Notice, Watcher
from esmtune.memory import peak_memory
from esmtune.nearness import read_training
from esmtune.runs import Run

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


def ready(
    run: Any,
    encoder: str | None,
    accelerator: Accelerator,
    precision: Precision,
    watch: Watcher,
    *,
    verify: bool = False,
    only_predicts: bool = False,
) -> "Predictor | Ensemble":
    """A loaded predictor, on its device; one that is given is moved there, and computes so from then on.

    If it `only_predicts`, what is loaded may be held rounded to what it computes in.
    """
    from esmtune.devices import choose_device
    from esmtune.ensembles import load_predictor
    from esmtune.predicting import Predicting, Use

    run = run.predictor if isinstance(run, Run) else run
    device = choose_device(accelerator)
    use = Use(device, precision) if only_predicts and not verify else None
    predictor = run if isinstance(run, Predicting) else load_predictor(run, encoder=encoder, verify=verify, use=use)
    if predictor.spec.encoder.is_random:
        watch(Notice(f"The encoder of this predictor started from RANDOM weights ({predictor.spec.encoder.name})."))
    predictor.precision = precision
    predictor = predictor.to(device)
    first = predictor.first
    trained = first.spec.precision
    if precision == "auto" and trained and first.is_delicate and first.takes(device) != trained:
        watch(Notice(
            f"PRECISION: this predictor learned from sequences much alike in {trained}, but computes in "
            f"{first.takes(device)} here: what it says of such sequences may differ from what was measured when it was "
            f"trained. --precision {trained} computes as then, if more slowly."
        ))  # fmt: skip
    return predictor


def computed(device: str, precision: str) -> Notice:
    """What predicting or embedding was done in, and what was held at its peak."""
    return Notice(f"Computed on {device} in {precision}. {peak_memory().text}")


def computed_by(predictor: "Predictor | Ensemble") -> Notice:
    """The same of a predictor, where it is and in what it computes."""
    first = predictor.first
    return computed(first.device.type, first.takes(first.device.type))


def tokens_for(predictor: "Predictor | Ensemble", sequences: Sequence[str], given: int | None, watch: Watcher) -> int:
    """Tokens per pass: as given, else what free memory has room for."""
    from esmtune.provisions import tokens_for_passing

    first = predictor.first
    lengths = [len(sequence) for sequence in sequences]
    return tokens_for_passing(first.encoder, len(first.spec.layers), lengths, first.device.type, given, watch)


def training_of(run: Any) -> Sequence[str]:
    """The sequences that a run learned from; none where only its predictor is given."""
    if isinstance(run, Run):
        return run.training
    return read_training(Path(run)) if isinstance(run, str | Path) else ()
