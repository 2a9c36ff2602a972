"""Everything between a sequence and its prediction, and how it lies on disk."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from esmtune.alphabet import clean
from esmtune.batching import Budget, by_length
from esmtune.checkpoints import file_digest, read_safetensors
from esmtune.config import TOKENS_PER_BATCH, Accelerator
from esmtune.encoders import Source, encoder_digest, load_encoder
from esmtune.esm2 import ESM2, ESM2Config, Tokens
from esmtune.events import Progress, Watcher, silent
from esmtune.heads import Head, Pooled, head
from esmtune.records import Label
from esmtune.tasks import Task, task
from esmtune.writers import whole_folder

FORMAT_VERSION = 1
WEIGHTS = "weights.safetensors"

# What every saved predictor is asked, so that it can be checked on another machine: public
# sequences (ubiquitin, protein G's B1 domain, melittin), because a user's own may be secret.
GOLDEN = (
    "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
    "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE",
    "GIGAVLKVLTTGLPALISWIKRKRQQ",
)
GOLDEN_TOLERANCE = 1e-3  # of the largest output; float32 differs by about 1e-5 between processors


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a predictor is, in words; its weights are beside it."""

    encoder: Source
    shape: ESM2Config
    tuning: Mapping[str, Any]
    head: Mapping[str, Any]
    task: Mapping[str, Any]
    target: str
    max_length: int | None
    trained_on: Mapping[str, Any]


class Predictor(nn.Module):
    """An encoder, a head and a task. It knows what it was trained on and how to read its own outputs.

    `moved` names the weights of the encoder that are not those of `spec.encoder`, and so are saved.
    """

    def __init__(self, spec: Spec, encoder: ESM2, moved: frozenset[str]):
        super().__init__()
        self.spec = spec
        self.encoder = encoder
        self.task: Task = task.load(spec.task)
        self.head: Head = head.build(spec.head, spec.shape.embed_dim, self.task.num_outputs)
        everything = frozenset(encoder.state_dict())
        self.moved = everything if spec.encoder.is_random else moved & everything

    def forward(self, x: Tokens | Pooled) -> Float[Tensor, "points outputs"]:
        """Outputs, from tokens or from what the head's pool made of them before."""
        return self.head(self.encoder(x) if isinstance(x, Tokens) else x)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.embed_tokens.weight.device

    def predict(self, sequences: Sequence[str], *, tokens_per_batch: int = TOKENS_PER_BATCH) -> list[Label]:
        """One prediction per sequence, in their order: a number in the label's unit, or the name of a class.

        Raises:
            ValueError: for a sequence that is none, with its place in the list.
        """
        return self.task.predict(self.outputs(self.cleaned(sequences), tokens_per_batch=tokens_per_batch))

    def probabilities(
        self, sequences: Sequence[str], *, tokens_per_batch: int = TOKENS_PER_BATCH
    ) -> dict[str, list[float]]:
        """The probability of each class, by its name; empty for a regression.

        Raises:
            ValueError: for a sequence that is none, with its place in the list.
        """
        return self.task.probabilities(self.outputs(self.cleaned(sequences), tokens_per_batch=tokens_per_batch))

    def cleaned(self, sequences: Sequence[str]) -> list[str]:
        """Mend what is harmless, and cut to the length that the predictor was trained with."""
        if isinstance(sequences, str):
            raise ValueError("predict takes a list of sequences, got one string: write [sequence].")
        mended, sequences = [], list(sequences)
        for number, sequence in enumerate(sequences, start=1):
            try:
                if not isinstance(sequence, str):
                    raise ValueError(f"got {sequence!r}, expected text")
                mended.append(clean(sequence)[: self.spec.max_length])
            except ValueError as error:
                raise ValueError(f"sequence {number} of {len(sequences)}: {error}.") from None
        return mended

    @torch.inference_mode()
    def outputs(
        self, sequences: Sequence[str], *, tokens_per_batch: int = TOKENS_PER_BATCH, watch: Watcher = silent
    ) -> Float[Tensor, "points outputs"]:
        """What the head gives for clean sequences, in their order, on the CPU."""
        rows: list[Tensor] = [torch.empty(0)] * len(sequences)
        done = 0
        with evaluating(self):
            for batch in by_length(range(len(sequences)), [len(s) for s in sequences], Budget(tokens=tokens_per_batch)):
                answers = self(Tokens.of([sequences[i] for i in batch]).to(self.device)).float().cpu()
                for index, answer in zip(batch, answers, strict=True):
                    rows[index] = answer
                done += len(batch)
                watch(Progress("predicting", done, len(sequences), "sequences"))
        return torch.stack(rows) if rows else torch.empty(0, self.task.num_outputs)

    def save(self, folder: str | os.PathLike[str], *, self_contained: bool = False) -> None:
        """Write `predictor.json` and `weights.safetensors`, whole or not at all.

        What the encoder shares with `spec.encoder` is not written, unless `self_contained`.
        """
        folder = Path(folder)
        strangers = {p.name for p in folder.iterdir()} - {"predictor.json", WEIGHTS} if folder.is_dir() else set()
        if strangers or folder.is_file():
            what = f"holds {min(strangers)!r}" if strangers else "is a file"
            raise ValueError(f"{folder} {what}, and would be lost. Save the predictor to another folder.")
        kept = frozenset(self.encoder.state_dict()) if self_contained else self.moved
        weights = {
            name: weight.detach().cpu().contiguous()
            for name, weight in self.state_dict().items()
            if not name.startswith("encoder.") or name.removeprefix("encoder.") in kept
        }
        golden = self.outputs(GOLDEN).tolist()
        with whole_folder(folder) as temporary:
            save_file(weights, temporary / WEIGHTS)
            source = asdict(self.spec.encoder) | asdict(self.spec.shape)
            content = {
                "format_version": FORMAT_VERSION,
                **asdict(self.spec),
                "encoder": {k: v for k, v in source.items() if k != "left_out"},
                "weights": {"sha256": file_digest(temporary / WEIGHTS)},
                "golden": [{"sequence": s, "outputs": o} for s, o in zip(GOLDEN, golden, strict=True)],
            }
            del content["shape"]
            text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
            (temporary / "predictor.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, encoder: str | None = None, verify: bool = False) -> "Predictor":
        """Read a predictor from a run or a predictor folder. No code from it is run.

        `encoder` says where the encoder's weights are now, if they have moved; `verify` recomputes
        three outputs that were saved with the predictor.

        Raises:
            ValueError: if it is no predictor, from a later version, damaged, or its encoder cannot be had.
        """
        folder = predictor_folder(path)
        if folder is None:
            raise ValueError(f"{os.fspath(path)} is no run and no predictor: there is no predictor.json in it.")
        content = _read_json(folder / "predictor.json")
        try:
            spec, sha256, golden = _parse(content)
            moved, weights = _saved_weights(folder, sha256)
            with torch.random.fork_rng(devices=[]):  # a head is drawn before it is loaded
                predictor = cls(spec, _encoder_for(spec, moved, encoder, folder), moved)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise ValueError(f"{folder / 'predictor.json'} is damaged ({type(error).__name__}: {error}).") from None
        wanted = {n: w for n, w in predictor.state_dict().items() if n in weights or not n.startswith("encoder.")}
        for name in wanted.keys() | weights.keys():
            if name not in weights or name not in wanted or weights[name].shape != wanted[name].shape:
                raise ValueError(f"{folder / WEIGHTS}: weight {name!r} is missing, unknown or of the wrong shape.")
        predictor.load_state_dict(weights, strict=False)
        predictor.eval()
        if verify:
            predictor._verify(golden, folder)
        return predictor

    def _verify(self, golden: Sequence[Mapping[str, Any]], folder: Path) -> None:
        saved = torch.tensor([row["outputs"] for row in golden])
        got = self.outputs([row["sequence"] for row in golden])
        difference = (got - saved).abs().max().item()
        if not difference <= GOLDEN_TOLERANCE * max(1.0, saved.abs().max().item()):
            raise ValueError(
                f"{folder}: on this machine the outputs of the golden rows differ by {difference:.2g} from those that "
                "were saved. Do not trust its predictions here."
            )


def find_encoder(name: str) -> tuple[ESM2, Source, frozenset[str]]:
    """An encoder without LM head: by any name of `load_encoder`, or that of a run or predictor of ours.

    Also returns its source, and the names of the weights that are not the source's own.
    """
    folder = predictor_folder(name)
    if folder is not None:
        predictor = Predictor.load(folder)
        return predictor.encoder, predictor.spec.encoder, predictor.moved
    encoder, source = load_encoder(name)
    encoder.lm_head = None
    return encoder, source, frozenset()


def predictor_folder(path: str | os.PathLike[str]) -> Path | None:
    """The folder with `predictor.json`, given it or the run around it."""
    folders = [Path(path), Path(path) / "predictor"]
    return next((folder for folder in folders if (folder / "predictor.json").is_file()), None)


def choose_device(accelerator: Accelerator) -> str:
    """The kind of device to compute on. MPS is never chosen unasked: some of its kernels are wrong without a word.

    Raises:
        ValueError: for a device that this machine does not have.
    """
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(accelerator, False):
        raise ValueError(
            f"there is no accelerator {accelerator!r} here. "
            f"There are: auto, {', '.join(name for name, is_there in there.items() if is_there)}."
        )
    return accelerator


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def _saved_weights(folder: Path, sha256: str) -> tuple[frozenset[str], dict[str, Tensor]]:
    """The weights of a folder, and which of them are the encoder's."""
    if file_digest(folder / WEIGHTS) != sha256:
        raise ValueError(
            f"{folder / WEIGHTS} is not the file that was saved (its checksum differs). Copy the run anew."
        )
    weights = read_safetensors(folder / WEIGHTS)
    return frozenset(n.removeprefix("encoder.") for n in weights if n.startswith("encoder.")), weights


def _encoder_for(spec: Spec, moved: frozenset[str], asked: str | None, folder: Path) -> ESM2:
    with torch.device("meta"):  # only the names are wanted: drawing weights to throw away takes longer than loading
        empty = ESM2(spec.shape)
    if moved >= frozenset(empty.state_dict()):
        return empty.to_empty(device="cpu")
    name = asked or spec.encoder.name
    if predictor_folder(name) == folder:
        raise ValueError(f"{folder} names itself as its encoder. Say where the encoder is: --encoder PATH.")
    try:
        encoder, _, _ = find_encoder(name)
    except ValueError as error:
        raise ValueError(
            f"{folder} was trained on the encoder {spec.encoder.name}, which it needs. {error} "
            "If it is elsewhere now, say where: --encoder PATH."
        ) from None
    if encoder.config != spec.shape or encoder_digest(encoder) != spec.encoder.sha256:
        raise ValueError(
            f"{folder} was trained on the encoder {spec.encoder.name} (SHA-256 {spec.encoder.sha256[:12]}...), "
            f"but {name} holds other weights. Say where the right ones are: --encoder PATH."
        )
    return encoder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{path} is no predictor: it has no format_version.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written in format {version}; this esmtune reads up to {FORMAT_VERSION}. Upgrade it."
        )
    return content


def _parse(content: dict[str, Any]) -> tuple[Spec, str, list[Mapping[str, Any]]]:
    source = dict(content["encoder"])
    shape = ESM2Config(**{key: source.pop(key) for key in ("num_layers", "embed_dim", "num_heads")})
    names = ("tuning", "head", "task", "target", "max_length", "trained_on")
    spec = Spec(encoder=Source(**source), shape=shape, **{name: content[name] for name in names})
    return spec, content["weights"]["sha256"], content["golden"]
