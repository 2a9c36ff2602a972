"""Options that have no say in a run, which is told before it starts."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from esmtune.config import DEFAULT_HEAD, DEFAULT_TUNING, SPLIT_METHODS, TrainConfig
from esmtune.curation import Curated

CHOOSING = ("patience", "valid_window", "calibration_fraction")
STEPPING = (
    "epochs", "max_steps", "global_batch_size", "head_learning_rate", "warmup", "schedule", "ema", "weight_decay",
    "clip", "feature_noise", "patience", "valid_window",
)  # fmt: skip
MOVING = ("encoder_learning_rate", "checkpoint_activations")


def idle(config: TrainConfig, curated: Curated) -> list[str]:
    """What is to be said of options that differ from their defaults, and yet change nothing.

    >>> from esmtune.curation import curate_training
    >>> config = TrainConfig(patience=3, valid_fraction=0.0, folds=1)
    >>> idle(config, curate_training([("MKTV", 0.1), ("GGSG", 0.9), ("MKTI", 0.2)] * 4, config))
    ['--patience has no say: no rows are for validation.']
    """
    return [
        f"{' and '.join(f'--{name}' for name in found)} {'has' if len(found) == 1 else 'have'} no say: {why}."
        for names, why in _without_say(config, curated)
        if (found := _given(names, config, len(curated.dataset.of("train"))))
    ]


def _without_say(config: TrainConfig, curated: Curated) -> Iterator[tuple[Sequence[str], str]]:
    """Options that have none, and why."""
    splits = {record.split for record in curated.dataset.records}
    if curated.says_test:
        yield ("test_fraction",), "the data say which rows are for the test"
    if curated.says_valid:
        yield ("valid_fraction",), "the data say which rows are for validation"
    elif (config.folds or 1) > 1 and curated.split_asked == "random":  # else families are dealt to all shares
        yield ("valid_fraction",), "with folds the training rows are held out in turn"
    if curated.says_test and curated.says_valid:
        yield ("identity",), "the data say how they are split"
    elif config.split in SPLIT_METHODS and config.split != "identity":
        yield ("identity",), f"the split is by {config.split}"
    if curated.folds == 1 and "valid" not in splits:
        yield CHOOSING, "no rows are for validation"
    if curated.folds == 1 and "calibration" not in splits:
        yield ("scaling",), "no rows are for calibration (--calibration-fraction keeps some of those for validation)"
    tuned = (config.tuning or {}).get("name", "full" if curated.dataset.kind == "mlm" else DEFAULT_TUNING)
    if tuned == "frozen" and not config.init:
        yield MOVING, "the encoder is frozen"
    if _is_solved(str((config.head or {}).get("name", DEFAULT_HEAD))) and not config.init:
        yield (*STEPPING, "mix"), "the head is solved in one go"
    if curated.dataset.kind == "mlm":
        yield ("feature_noise",), "language modeling masks residues instead"
    if config.layers is not None and config.layers.lstrip("-").isdecimal():
        yield ("mix",), "there is one layer"


def _is_solved(name: str) -> bool:
    from esmtune.heads import head

    return name in head and head[name].is_solved


def _given(names: Sequence[str], config: TrainConfig, count: int) -> list[str]:
    """Those of some options that are not what they would be if nothing was said."""
    plain = TrainConfig()
    tuned = str((config.tuning or {}).get("name", DEFAULT_TUNING))
    lasting = {name: getattr(config, name) for name in ("epochs", "max_steps", "global_batch_size")}
    usual = [plain, plain.completed(tuned, count)]
    following = replace(plain, **lasting).completed(tuned, count)  # what goes by how long it is

    def is_said(name: str) -> bool:
        value = getattr(config, name)
        others = usual if name in lasting else [*usual, following]
        return value is not False and all(value != getattr(x, name) for x in others)

    return [name.replace("_", "-") for name in names if is_said(name)]
