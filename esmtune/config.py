"""All that a run depends on, as plain data. Every default of the package is here and nowhere else."""

from dataclasses import dataclass
from typing import Literal, get_args

Part = dict[str, str | int | float | bool]  # {"name": ..., option: value}
Precision = Literal["float32", "bfloat16"]
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
Pooling = Literal["mean", "cls", "residue"]

DEFAULT_ENCODER = "esm2_t6_8M_UR50D"
DEFAULT_HEAD = "mlp"
DEFAULT_TUNING = "frozen"
TOKENS_PER_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of `esmtune train`, the same in the shell, in Python and in `run.toml`."""

    target: str | None = None
    """The column with the labels; found by its usual names (target, label, score, ...) when not given."""
    sequence: str | None = None
    """The column with the sequences; found by its usual names (sequence, seq, ...) when not given."""
    id: str | None = None
    """The column with a name for each row; found by its usual names (id, entry, ...) when not given."""
    split: str | None = None
    """The column that says train, valid or test; found by its usual names (split, set, ...) when not given."""
    valid: str | None = None
    """A file with the validation rows, instead of a split column."""
    test: str | None = None
    """A file with the test rows, instead of a split column."""
    valid_fraction: float = 0.1
    """The share of the rows that is set aside for validation where the data do not say which."""
    test_fraction: float = 0.1
    """The share of the rows that is set aside for the final test where the data do not say which."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used, and list them, instead of refusing the file."""
    max_length: int | None = None
    """Cut sequences to their first so many residues."""

    task: Part | None = None
    """What the labels are: regression, binary or multiclass; told from the labels when that is clear.
    Options follow a dot: --task.loss huber."""
    encoder: str | None = None
    """An ESM-2: a Hugging Face name or folder, a fair-esm .pt, a run of ours, or random:NAME.
    [default: esm2_t6_8M_UR50D]"""
    init: str | None = None
    """A run to start from, with all its weights, head included."""
    init_skip: tuple[str, ...] = ()
    """Weights of --init to leave out and start anew, by the beginning of their name, such as head."""
    head: Part | None = None
    """What reads the encoder: linear or mlp. Options follow a dot: --head.hidden 64. [default: mlp]"""
    tuning: Part | None = None
    """Which weights of the encoder move: frozen (none), last (--tuning.layers of them), full. [default: frozen]"""

    epochs: int = 30
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stop after so many steps, whatever --epochs says; there are as many epochs as it takes."""
    global_batch_size: int = 8
    """Sequences per step, over all devices."""
    micro_batch_size: int | None = None
    """Sequences per pass through the network at most; changes memory, not results."""
    tokens_per_batch: int = TOKENS_PER_BATCH
    """Residues (and two more a sequence) per pass at most; changes memory, not results."""
    head_learning_rate: float = 1e-3
    """The head's learning rate at its peak."""
    encoder_learning_rate: float = 1e-4
    """The encoder's learning rate at its peak."""
    warmup: float = 0.1
    """The share of the steps in which the rates rise; then they fall along a cosine."""
    weight_decay: float = 0.01
    """AdamW's weight decay, of matrices only."""
    clip: float = 1.0
    """The gradient's norm is cut to this."""
    metric: str | None = None
    """The validation metric that chooses the weights to keep, or loss. [default: spearman or mcc, by task]"""
    patience: int = 10
    """Stop after so many epochs without a better validation metric."""
    seed: int = 0
    """Fixes the split, the first weights, the order and the dropout."""

    precision: Precision = "float32"
    """float32, or bfloat16 for the matrix products of training."""
    accelerator: Accelerator = "auto"
    """auto takes a CUDA GPU if there is one, and the CPU otherwise."""
    devices: int = 1
    """Processes or GPUs per node."""
    num_nodes: int = 1
    """Machines, started by torchrun or SLURM."""
    log: tuple[Literal["csv", "tensorboard"], ...] = ()
    """Also write the history to RUN/logs, for these."""
    self_contained: bool = False
    """Save a frozen encoder with the predictor, so that it needs no other file."""

    def __post_init__(self):
        at_least = {"epochs": 1, "max_steps": 1, "global_batch_size": 1, "micro_batch_size": 1, "tokens_per_batch": 1,
                    "patience": 1, "devices": 1, "num_nodes": 1, "max_length": 1, "seed": 0,
                    "head_learning_rate": 0, "encoder_learning_rate": 0, "weight_decay": 0, "clip": 0}  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} is {value}, expected {least} or more.")
        choices = {"precision": get_args(Precision), "accelerator": get_args(Accelerator)}
        choices |= {f"log {name}": ("csv", "tensorboard") for name in self.log}
        for name, known in choices.items():
            value = name.removeprefix("log ") if name.startswith("log ") else getattr(self, name)
            if value not in known:
                raise ValueError(f"{name.split()[0]} is {value!r}, expected one of {', '.join(known)}.")
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}, expected more than 0.")
        if self.seed >= 1 << 32:
            raise ValueError(f"seed is {self.seed}, expected less than 2 to the 32nd, {1 << 32}.")
        for name in ("valid_fraction", "test_fraction", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share from 0 to below 1.")
        if self.init_skip and not self.init:
            raise ValueError("init_skip leaves out weights of init, but no init is given.")
