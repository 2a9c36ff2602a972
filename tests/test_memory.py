"""Running out of memory, simulated: no record is lost, and the numbers are those of a machine that has enough."""

import numpy as np
import pytest
import torch

import esmtune
from esmtune.batching import TooLittleMemoryError, halving, is_out_of_memory
from esmtune.esm2 import ESM2
from tests.conftest import TEN, in_new_process

ROWS = [(sequence, float(len(sequence) % 7) + number / 10) for number, sequence in enumerate(TEN)]
OPTIONS = {"epochs": 2, "valid_fraction": 0.2, "test_fraction": 0.2, "folds": 1, "global_batch_size": 4}
ERRORS = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
]


@pytest.fixture
def scarce(monkeypatch):
    """An encoder that has memory for so many sequences at once, and no more; it notes how many it was given."""
    given = []

    def limit(most: int, error=ERRORS[0]):
        real = ESM2.representations

        def representations(self, tokens, layers):
            given.append(len(tokens.lengths))
            if len(tokens.lengths) > most:
                raise error
            return real(self, tokens, layers)

        monkeypatch.setattr(ESM2, "representations", representations)
        return given

    return limit


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_is_halved_in_its_order(error):
    def compute(part):
        if len(part) > 2:
            raise error
        return [index * 10 for index in part]

    found = list(halving([5, 3, 8, 1, 4], compute))
    assert [index for part, _ in found for index in part] == [5, 3, 8, 1, 4]
    assert [x for _, result in found for x in result] == [50, 30, 80, 10, 40]
    with pytest.raises(TooLittleMemoryError, match="a single sequence does not fit into memory"):
        list(halving([1, 2], lambda part: (_ for _ in ()).throw(error)))


def test_other_errors_are_not_taken_for_it():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(halving([1, 2], lambda part: (_ for _ in ()).throw(RuntimeError("shapes"))))


def test_what_torch_says_is_recognized():
    """A real allocation that no machine has room for."""
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)


def test_predicting_and_embedding_lose_no_record(tiny, scarce):
    run = esmtune.train(ROWS, encoder=str(tiny), **OPTIONS)
    predicted, embedded = run.predictor.predict(TEN), esmtune.embed(str(tiny), list(TEN)).vectors
    given = scarce(3)
    assert run.predictor.predict(TEN) == pytest.approx(predicted, abs=1e-5)
    np.testing.assert_allclose(esmtune.embed(str(tiny), list(TEN)).vectors, embedded, atol=1e-5)
    assert max(given) > 3


@pytest.mark.parametrize("tuning", ["frozen", "full"])
@pytest.mark.parametrize("loss", ["squared", "pairwise"])
def test_training_comes_to_the_same(tiny, scarce, tuning, loss):
    options = OPTIONS | {"encoder": str(tiny), "tuning": tuning, "task": {"name": "regression", "loss": loss}}
    plenty = esmtune.train(ROWS, **options)
    scarce(2)
    said = []
    little = esmtune.train(ROWS, watch=said.append, **options)
    texts = [getattr(event, "text", "") for event in said]
    assert any("Out of memory: on with at most 2 sequences a pass" in text for text in texts) == (tuning == "full")
    for one, other in zip(plenty.history, little.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-4)
    assert plenty.predictions["id"].equals(little.predictions["id"])


def test_a_sequence_that_does_not_fit_ends_in_a_sentence(tiny, tmp_path, shell, monkeypatch):
    real = ESM2.representations

    def nothing(self, tokens, layers):
        if torch.is_grad_enabled() or not any(weight.requires_grad for weight in self.parameters()):
            raise ERRORS[0]
        return real(self, tokens, layers)

    monkeypatch.setattr(ESM2, "representations", nothing)
    (tmp_path / "d.csv").write_text("sequence,y\n" + "".join(f"{s},{y}\n" for s, y in ROWS))
    for tuning, advice in [("frozen", "--max-length"), ("full", "--tuning lora or last")]:
        answer = shell("train", tmp_path / "d.csv", "--target", "y", "--encoder", tiny, "--tuning", tuning,
                       "--out", tmp_path / tuning)  # fmt: skip
        assert answer.code == 2
        assert advice in answer.err
        assert not (tmp_path / tuning).exists()


def test_a_process_that_may_not_take_more_goes_on_in_smaller_batches(tmp_path):
    """Not simulated: the address space of a process is bounded, and batches are too large for it."""
    script = """
import resource, sys
import numpy as np, torch
import esmtune
from tests.conftest import TEN
torch.set_num_threads(1)
sequences = [sequence * 12 for sequence in TEN] * 2
small = esmtune.embed("random:esm2_t6_8M_UR50D", sequences, tokens_per_batch=1500).vectors
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20), resource.RLIM_INFINITY))
large = esmtune.embed("random:esm2_t6_8M_UR50D", sequences, tokens_per_batch=1 << 20).vectors
print(float(np.abs(large - small).max()))
"""
    file = tmp_path / "bounded.py"
    file.write_text(script)
    import os

    answer = in_new_process(file, PYTHONPATH=os.getcwd(), OMP_NUM_THREADS="1")
    assert answer.code == 0, answer.err
    assert float(answer.out) < 1e-4
