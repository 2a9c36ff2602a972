"""All that a run depends on, as plain data. Every default of the package is here and nowhere else."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

Part = dict[str, str | int | float | bool]  # {"name": ..., option: value}
Precision = Literal["auto", "float32", "bfloat16"]
Computed = Literal["float32", "bfloat16"]
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
Pooling = Literal["mean", "cls", "residue"]
Level = Literal["sequence", "residue"]
Split = Literal["train", "valid", "calibration", "test"]
SPLIT_METHODS = ("random", "stratified", "identity", "position", "mutations", "segment", "time")
Replicates = Literal["keep", "mean"]
Scaling = Literal["none", "temperature", "isotonic"]
ScheduleShape = Literal["cosine", "linear", "constant"]

EDITION = 7  # one more whenever trainings come to go otherwise, for then none of before can go on
DEFAULT_ENCODER = "esm2_t6_8M_UR50D"
DEFAULT_HEAD = "mlp"
DEFAULT_TUNING = "frozen"
# What is best by tuning, on validation rows of several data sets: docs/recipes.md. Adapters of every kind go by lora.
RECIPES: dict[str, dict[str, int | float]] = {
    "frozen": {"epochs": 30, "global_batch_size": 32, "head_learning_rate": 3e-4, "encoder_learning_rate": 1e-4,
               "ema": 1.0},
    "lora": {"epochs": 20, "global_batch_size": 8, "head_learning_rate": 3e-4, "encoder_learning_rate": 1e-3,
             "ema": 1.0},
    "full": {"epochs": 20, "global_batch_size": 8, "head_learning_rate": 3e-4, "encoder_learning_rate": 1e-4,
             "ema": 1.0},
}  # fmt: skip
LEAST_STEPS = 2000  # from few labels it takes more epochs
MOST_STEPS, LEAST_EPOCHS = 8000, 3  # of an encoder that moves: from many labels it takes fewer epochs
RECIPE_OF = {"frozen": "frozen", "full": "full", "last": "full", "probe-then-full": "full"}
# How numbers of sequences are learned, unless another loss than squared is asked for: docs/recipes.md.
REGRESSION: Part = {"ranking_weight": 3.0, "scale": "auto"}
FEW_LABELS = 200  # training sequences: with less, `auto` leaves the encoder frozen
CLASSES = ("binary", "multiclass", "multilabel", "ordinal")
DROPOUT = 0.5  # of an MLP, where it would learn the labels by heart
LAYERS = 7  # that the head sees of an encoder, spread evenly from the embeddings to the last
TOKENS_PER_BATCH = 4096
CACHE_GB = 20  # of embeddings, over all runs
SHARES = (0.1, 0.2, 0.5)  # of the labels, that a learning curve is made of, beside all
SEARCH_TRIALS = 20
SEARCH_FOLDS = 5  # of the rows that are not for the test, where the data do not say which are for validation


def learns_by_heart(tuning: str, kind: str, level: str) -> bool:
    """Whether a head would learn the labels of the training rows by heart, and is kept from it: decision 24."""
    return tuning == "frozen" and kind in CLASSES and level == "sequence"


def usual_head(tuning: str, kind: str, level: str) -> Part:
    """The head for labels of a kind and level, with what is not its own default, where nothing else is asked for.

    >>> usual_head("frozen", "regression", "sequence")
    {'name': 'mlp', 'ridge': True}
    """
    usual: Part = {"name": DEFAULT_HEAD}
    if tuning == "frozen" and level == "sequence":
        usual["ridge"] = True
    return usual | ({"dropout": DROPOUT} if learns_by_heart(tuning, kind, level) else {})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of `esmtune train`, the same in the shell, in Python and in `run.toml`."""

    target: tuple[str, ...] | None = None
    """The column, or columns, with the labels; found by its usual names (target, label, score, ...) when not given.
    COLUMN:KIND says what the labels of one of several are, such as grade:ordinal."""
    sequence: str | None = None
    """The column with the sequences; found by its usual names (sequence, seq, ...) when not given."""
    id: str | None = None
    """The column with a name for each row; found by its usual names (id, entry, ...) when not given."""
    split: str | None = None
    """The column that says train, valid, calibration or test, found by its usual names (split, set, ...) when not
    given; or how to split: random, stratified, identity, position, mutations, segment or time; or RUN/split.csv, to
    split as that run. [default: by identity where related sequences are found, else random]"""
    identity: float | None = None
    """From what share of identical residues on sequences are related, and stay on one side. [default: 0.3]"""
    coverage: float = 0.8
    """How much of the shorter of two sequences must be alike for that."""
    wild_type: str | None = None
    """The protein that the sequences are variants of; told from them when not given."""
    mutations: int | None = None
    """Train on variants with at most so many mutations, with --split mutations. [default: by test_fraction]"""
    time: str | None = None
    """The column with the times, for --split time."""
    weight: str | None = None
    """A column that says how much each row counts in the loss."""
    mask: str | None = None
    """A column that says for each residue whether its label counts (1) or not (0); found by its usual name, mask."""
    level: Level | None = None
    """Whether labels belong to sequences or to residues; told from the labels when not given."""
    replicates: Replicates = "keep"
    """Rows of the same sequence are kept as they are, or averaged (mean)."""
    valid: str | None = None
    """A file with the validation rows, instead of a split column."""
    test: str | None = None
    """A file with the test rows, instead of a split column."""
    valid_fraction: float = 0.1
    """The share of the rows that is set aside for validation where the data do not say which."""
    test_fraction: float = 0.1
    """The share of the rows that is set aside for the final test where the data do not say which."""
    calibration_fraction: float | None = None
    """The share of the validation rows that is kept from the choice of weights, for intervals and sets; 0 is none.
    [default: half, where 20 sequences or more stay on either side]"""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used, and list them, instead of refusing the file."""
    max_length: int | None = None
    """Cut sequences to their first so many residues."""

    task: Part | None = None
    """What the labels are: regression, binary, multiclass, multilabel or ordinal; told from the labels when that is
    clear. mlm goes on with language modeling on sequences without labels. Options follow a dot: --task.loss huber
    (docs/parts.md has them all)."""
    encoder: str | None = None
    """An ESM-2: a Hugging Face name or folder, a fair-esm .pt, a run of ours, or random:NAME.
    [default: esm2_t6_8M_UR50D]"""
    init: str | None = None
    """A run to start from, with all its weights, head included."""
    init_skip: tuple[str, ...] = ()
    """Weights of --init to leave out and start anew, by the beginning of their name, such as head."""
    layers: str | None = None
    """What the head sees: a layer of the encoder (0 is the embeddings, -1 the last), or several side by side, 0,3,-1 or
    all; --layers=-1,0 where the first is negative. [default: seven from first to last; for heads that see residues the
    last and the one at two thirds of the depth]"""
    mix: bool = False
    """Mix several layers into one by learned weights, instead of laying them side by side."""
    head: Part | None = None
    """What reads the encoder: linear, mlp, conv, attention, light-attention or ridge. Options follow a dot:
    --head.hidden 64 (docs/parts.md). [default: mlp]"""
    tuning: Part | None = None
    """Which weights of the encoder move: frozen (none), last (--tuning.layers of them), bitfit (biases), full,
    probe-then-full (head first), adapters (lora, dora, ia3, loha, lokr, oft, hra), or auto. Options follow a dot:
    --tuning.rank 4 (docs/parts.md). [default: frozen; full for task mlm]"""
    seeds: int = 1
    """Train so many times, from seed on, and predict with all of them together."""
    dropout_samples: int = 0
    """Predict with so many draws of the head's dropout (MC dropout), whose spread says how sure it is; 0 is without."""
    folds: int | None = None
    """Train on all but one of so many parts, each in turn, and predict with all of them together; 1 is no folds.
    [default: 5 where there are too few rows to set some aside for validation: below 100, or 500 with one label a
    sequence, a frozen encoder and head linear, mlp or ridge, where folds cost next to nothing]"""

    epochs: int | None = None
    """Passes over the training rows. [default: by tuning, as are the next three and ema: docs/recipes.md]"""
    max_steps: int | None = None
    """Stop after so many steps, whatever --epochs says; there are as many epochs as it takes."""
    global_batch_size: int | None = None
    """Sequences per step, over all devices."""
    micro_batch_size: int | None = None
    """Sequences per pass through the network at most; changes memory, not results."""
    tokens_per_batch: int | None = None
    """Residues (and two more a sequence) per pass at most; changes memory, not results. [default: 4096, or what free
    memory has room for]"""
    checkpoint_activations: bool | None = None
    """Compute each layer of a moving encoder twice, rather than keep what it computed: less memory, more time, the same
    results. [default: where memory would not suffice]"""
    head_learning_rate: float | None = None
    """The head's learning rate at its peak."""
    encoder_learning_rate: float | None = None
    """The encoder's learning rate at its peak."""
    warmup: float = 0.1
    """The share of the steps in which the rates rise; then they follow the schedule."""
    schedule: ScheduleShape = "cosine"
    """How the rates fall after the warm-up: along a cosine, in a line, or not at all (constant)."""
    ema: float | None = None
    """Use a moving average of the weights over about so many epochs; 0 is none."""
    weight_decay: float = 0.01
    """AdamW's weight decay, of matrices only."""
    clip: float = 1.0
    """The gradient's norm is cut to this."""
    feature_noise: float | None = None
    """Noise on what the head sees while it learns, in standard deviations of each channel. [default: for classes of
    sequences, one target, tuning frozen and a head that sees one vector of each and is new, what a linear map of the
    training rows needs, 2 at most; else 0]"""
    metric: str | None = None
    """The validation metric that chooses the weights to keep, or loss. [default: spearman or mcc, by task]"""
    valid_window: int | None = None
    """Choose by its mean over so many epochs, up to the one whose weights are kept, for few validation rows are best
    predicted by chance; none is chosen before there are so many. [default: a fifth of the epochs]"""
    patience: int | None = None
    """Stop after so many epochs without better weights, by the same mean. [default: a third of the epochs, at least
    10]"""
    seed: int = 0
    """Fixes the split, the first weights, the order and the dropout."""
    learning_curve: bool = False
    """Also train on 10, 20 and 50 % of the labels, and say what more of them would bring."""

    cache: str | None = None
    """A folder that keeps what frozen encoders give, for later runs, or none. [default: $ESMTUNE_CACHE, else the
    user's cache folder]"""
    precision: Precision = "auto"
    """What the encoder's matrix products are computed in: float32, bfloat16, or auto, which takes bfloat16 where the
    device has units that are faster in it. All else is float32."""
    accelerator: Accelerator = "auto"
    """auto takes a CUDA GPU if there is one, and the CPU otherwise."""
    devices: int = 1
    """Processes or GPUs per node."""
    num_nodes: int = 1
    """Machines, started by torchrun or SLURM."""
    log: tuple[Literal["csv", "tensorboard"], ...] = ()
    """Also write the history to RUN/logs, for these."""
    report: bool = True
    """Write RUN/report.html, where the extra esmtune[report] is installed; --report=false leaves it out."""
    checkpoint_minutes: float = 5.0
    """Save what --resume needs to go on, at most this often."""
    scaling: Scaling = "none"
    """Mend the probabilities of classes by half of the calibration rows: by one temperature, or isotonic; sets are
    calibrated by the other half."""
    references: int = 2000
    """Keep vectors of at most so many training sequences with the predictor (4 MiB at most), so that it can say how far
    from them another is; 0 keeps none."""
    self_contained: bool = False
    """Save a frozen encoder with the predictor, so that it needs no other file."""

    def __post_init__(self):
        at_least = {"epochs": 1, "max_steps": 1, "global_batch_size": 1, "micro_batch_size": 1, "tokens_per_batch": 1,
                    "patience": 1, "valid_window": 1,
                    "devices": 1, "num_nodes": 1, "max_length": 1, "seed": 0, "seeds": 1, "folds": 1,
                    "checkpoint_minutes": 0, "ema": 0, "mutations": 0,
                    "head_learning_rate": 0, "encoder_learning_rate": 0, "weight_decay": 0,
                    "dropout_samples": 0, "references": 0, "feature_noise": 0}  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"{name} is {value}, expected {least} or more.")
        choices = {"precision": get_args(Precision), "accelerator": get_args(Accelerator),
                   "schedule": get_args(ScheduleShape), "replicates": get_args(Replicates),
                   "scaling": get_args(Scaling), "level": (None, *get_args(Level))}  # fmt: skip
        choices |= {f"log {name}": ("csv", "tensorboard") for name in self.log}
        for name, known in choices.items():
            value = name.removeprefix("log ") if name.startswith("log ") else getattr(self, name)
            if value not in known:
                raise ValueError(f"{name.split()[0]} is {value!r}, expected one of {', '.join(filter(None, known))}.")
        if not 0 < self.clip < math.inf:
            raise ValueError(f"clip is {self.clip}, expected more than 0.")
        if self.seed + self.seeds > 1 << 32:
            raise ValueError(f"seed is {self.seed}, expected less than 2 to the 32nd, {1 << 32}.")
        if self.seeds > 1 and (self.folds or 1) > 1:
            raise ValueError("seeds and folds both train several times: take one of them.")
        for name in ("valid_fraction", "test_fraction", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share from 0 to below 1.")
        for name in ("identity", "coverage"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is {value}, expected a share above 0 and up to 1.")
        if not 0 <= (self.calibration_fraction or 0.0) < 1:
            raise ValueError(
                f"calibration_fraction is {self.calibration_fraction}, expected a share from 0 to below 1."
            )
        if self.init_skip and not self.init:
            raise ValueError("init_skip leaves out weights of init, but no init is given.")

    def completed(self, tuning: str, records: int) -> "TrainConfig":
        """The same with what was left open filled in from the recipe of a tuning, for so many training records.

        >>> TrainConfig(epochs=3).completed("full", 800).epochs
        3
        >>> [TrainConfig().completed("full", records).epochs for records in (80, 800, 8000, 80000)]
        [200, 20, 8, 3]
        """
        recipe = RECIPES[RECIPE_OF.get(tuning, "lora")]
        full = replace(self, **{name: value for name, value in recipe.items() if getattr(self, name) is None})
        per_epoch = -(-records // (full.global_batch_size or 1))
        if self.epochs is None:
            epochs = max(int(recipe["epochs"]), -(-LEAST_STEPS // max(1, per_epoch)))
            if tuning != "frozen":
                epochs = min(epochs, max(LEAST_EPOCHS, MOST_STEPS // max(1, per_epoch)))
            full = replace(full, epochs=epochs)
        epochs = full.epochs or 0
        passes = -(-self.max_steps // max(1, per_epoch)) if self.max_steps else epochs
        window = min(self.valid_window or max(1, passes // 5), passes)
        return replace(full, patience=self.patience or max(10, epochs // 3), valid_window=window)
