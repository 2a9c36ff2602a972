"""Running out of memory, simulated: no record is lost, and the numbers are those of a machine that has enough."""

import json
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

import esmtune
from esmtune.assignments import fit_task
from esmtune.composition import Origin, compose, decided
from esmtune.curation import curate_training
from esmtune.encoders import Source
from esmtune.esm2 import ESM2, Tokens
from esmtune.events import silent
from esmtune.fitting import configured
from esmtune.footprint import MEASURED_BYTES, Footprint, Most, fits_in_memory
from esmtune.memory import _left_by_limits, give_back_now, is_room_for_threads
from esmtune.provisions import LOOKED_AT, footprints, most_of, provision
from esmtune.shortage import NO_CODE, TooLittleMemoryError, halving, is_out_of_memory, with_code
from tests.conftest import TEN, in_new_process, tiny_encoder

ROWS = [(sequence, float(len(sequence) % 7) + number / 10) for number, sequence in enumerate(TEN)]
OPTIONS = {"epochs": 2, "valid_fraction": 0.2, "test_fraction": 0.2, "folds": 1, "global_batch_size": 4}
ERRORS = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("could not create a primitive"),
    RuntimeError("std::bad_alloc"),
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


def refused():
    """As oneDNN behaves in a thread that it once denied memory: code is refused there, however small the batch."""
    if threading.current_thread() is threading.main_thread():
        raise RuntimeError(NO_CODE)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_thread_that_gets_no_code_leaves_the_work_to_another(mode):
    """Not even a single sequence is given up; threads compute as the one that they stand in for."""
    with mode():
        wanted = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()
        assert list(halving([7], lambda part: refused())) == [([7], wanted)]


@pytest.mark.parametrize("tuning", ["full", {"name": "lora", "dropout": 0.3}], ids=["full", "lora"])
@pytest.mark.parametrize("passes", [0, 1, 2])
def test_training_goes_on_in_another_thread_bit_for_bit(tiny, monkeypatch, tuning, passes):
    """Refused from the first pass on, or after gradients of some micro-batches are there: what is drawn is the same."""
    options = OPTIONS | {"encoder": str(tiny), "tuning": tuning, "micro_batch_size": 1}
    plenty = esmtune.train(ROWS, **options)
    real, seen = ESM2.representations, []

    def representations(self, tokens, layers):
        found = real(self, tokens, layers)
        if threading.current_thread() is threading.main_thread():
            seen.append(torch.is_grad_enabled())
            if sum(seen) > passes or not (seen[-1] or passes):
                raise RuntimeError(NO_CODE)
        return found

    monkeypatch.setattr(ESM2, "representations", representations)
    said = []
    other = esmtune.train(ROWS, watch=said.append, **options)
    assert sum(seen) > passes or (seen and not passes)  # then outputs, which come first, are refused already
    assert not any("Out of memory" in getattr(event, "text", "") for event in said)
    assert other.history == plenty.history


@pytest.mark.parametrize("lacks", ["room", "threads"])
def test_without_another_thread_batches_are_halved(monkeypatch, lacks):
    """An OpenMP that finds no room for its threads would end the process."""
    if lacks == "room":
        monkeypatch.setattr("esmtune.shortage.is_room_for_threads", lambda count: False)
    else:
        monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("can't start")))
    found = list(halving([3, 1, 2], lambda part: part if len(part) == 1 else refused()))
    assert found == [([3], [3]), ([1], [1]), ([2], [2])]


class Fails(torch.autograd.Function):
    """Runs out of memory on its way back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


class Holds(Fails):
    """Keeps something for its way back, on which it never goes."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = Kept()
        held.append(weakref.ref(ctx.kept))
        return x.clone()


class Kept:
    """What a graph holds."""


held = []


def test_the_graph_of_a_backward_pass_that_failed_is_let_go():
    """Torch keeps what was left to do of it until the next one, in the memory that this one lacks."""
    x = torch.ones(3, requires_grad=True)
    total = Holds.apply(x).sum() + Fails.apply(x).sum()
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        total.backward()
    del total
    give_back_now()
    assert held.pop()() is None


@pytest.mark.parametrize("room", [True, False])
def test_a_product_that_switched_onednn_off_is_computed_by_another_thread_or_is_good(monkeypatch, room):
    """Torch only warns of it, and from then on computes thirty times as slow."""
    monkeypatch.setattr("esmtune.shortage.is_room_for_threads", lambda count: room)
    seen = []

    def switched_off():
        seen.append(threading.current_thread() is threading.main_thread())
        if seen[-1]:
            torch.backends.mkldnn.enabled = False
        return torch.backends.mkldnn.enabled

    assert with_code(switched_off) is room
    assert torch.backends.mkldnn.enabled
    assert seen == ([True, False] if room else [True])


def test_room_for_threads_is_that_of_the_process():
    assert is_room_for_threads(2)
    assert not is_room_for_threads(1 << 50)


def test_a_plan_goes_on_in_another_thread(tiny, monkeypatch):
    real = ESM2.representations

    def representations(self, tokens, layers):
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError(NO_CODE)
        return real(self, tokens, layers)

    monkeypatch.setattr(ESM2, "representations", representations)
    assert esmtune.plan(ROWS, encoder=str(tiny), **OPTIONS).fits


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


def test_an_optimizer_that_has_no_room_ends_in_a_sentence(tiny, monkeypatch):
    def nothing(self, closure=None):
        raise ERRORS[0]

    monkeypatch.setattr(torch.optim.AdamW, "step", nothing)
    with pytest.raises(TooLittleMemoryError, match=r"what the optimizer keeps .* \(--tuning lora or last\)"):
        esmtune.train(ROWS, encoder=str(tiny), **OPTIONS)


@pytest.mark.parametrize("error", [ERRORS[0], MemoryError()], ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_anywhere_ends_in_a_sentence(tiny, tmp_path, shell, monkeypatch, error):
    def embed(*args, **options):
        raise error

    monkeypatch.setattr(esmtune, "embed", embed)
    (tmp_path / "d.csv").write_text("sequence\nMK\n")
    answer = shell("embed", tiny, tmp_path / "d.csv", "--out", tmp_path / "d.npz")
    assert answer.code == 2
    assert "esmtune: memory ran out" in answer.err
    error = RuntimeError("shapes")
    with pytest.raises(RuntimeError, match="shapes"):  # a defect of ours is no matter of memory
        shell("embed", tiny, tmp_path / "d.csv", "--out", tmp_path / "d.npz")


def test_predicting_and_embedding_say_what_they_computed_in_and_held(tiny, monkeypatch):
    run = esmtune.train(ROWS, encoder=str(tiny), **OPTIONS)
    for precision in ("float32", "bfloat16"):
        monkeypatch.setenv("ESMTUNE_PRECISION", precision)
        said = []
        esmtune.predict(run, list(TEN), watch=said.append)
        found = esmtune.embed(str(tiny), list(TEN), cache="none", watch=said.append)
        texts = [getattr(event, "text", "") for event in said]
        assert sum(text.startswith(f"Computed on cpu in {precision}. Peak memory: ") for text in texts) == 2
        assert found.about["precision"] == precision


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


def tuned(encoder, tuning, recomputes=None):
    """A predictor of an encoder, as it would be trained."""
    config = configured({"tuning": tuning, "checkpoint_activations": recomputes, **OPTIONS})
    data = curate_training(ROWS, config).dataset
    origin = Origin(encoder=encoder, source=Source(name="tiny", sha256="", license=None), moved=frozenset(), start=None)
    config = decided(config, data, origin, silent)
    torch.manual_seed(0)
    return compose(config, data, origin, fit_task(data, None))


@pytest.mark.parametrize("tuning", ["lora", "last", "full"])
def test_weights_that_stay_are_in_memory_once(tuning):
    encoder = tiny_encoder()
    before = {name: weight.clone() for name, weight in encoder.named_parameters()}
    predictor = tuned(encoder, tuning)
    own = {id(weight) for weight in encoder.parameters()}
    moving = {id(w) for w in predictor.encoder.parameters() if w.requires_grad}
    assert moving
    assert not moving & own  # or training would change the encoder that other members begin with
    staying = [w for w in predictor.encoder.parameters() if not w.requires_grad]
    assert all(id(weight) in own for weight in staying)
    with torch.no_grad():
        for weight in predictor.parameters():
            weight += weight.requires_grad
    assert all(weight.equal(before[name]) for name, weight in encoder.named_parameters())


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_layers_that_compute_twice_have_the_same_gradients(tuning):
    found = []
    for recomputes in (False, True):
        predictor = tuned(tiny_encoder(), tuning, recomputes)
        assert predictor.encoder.recomputes is recomputes
        kept = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.nbytes) or x, lambda x: x)
        predictor.train()
        with hooks:
            loss = predictor(Tokens.of(list(TEN))).square().sum()
        loss.backward()
        found.append((sum(kept), {n: w.grad for n, w in predictor.named_parameters() if w.grad is not None}))
    (much, first), (little, second) = found
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    assert little < much / 2


MOST = Most(longest=100)


def footprint(**changed):
    usual = {"weights": 1000, "copies": 0, "kept": 4.0, "learning": 1.0, "evaluating": 1.0, "fixed": 0, "features": 0}
    return Footprint(**usual | changed)


def test_what_is_done_for_memory_goes_by_what_it_costs():
    dear, back, twice = footprint(), footprint(kept=2.0), footprint(kept=0.5)
    found = {(False, False): dear, (False, True): back, (True, True): twice}

    def chosen(room, **given):
        made = provision(found, room, MOST, **{"tokens": None, "recomputes": None} | given)
        assert made.fits == (made.peak <= room)
        return made.tokens, made.recomputes, made.gives_back

    assert chosen(1000 + 5 * 4096) == (4096, False, False)
    assert chosen(1000 + 5 * 4096 - 1) == (2048, False, False)
    assert chosen(1000 + 5 * 256) == (256, False, False)
    assert chosen(1000 + 3 * 256) == (256, False, True)
    assert chosen(1000 + 1.5 * 256) == (256, True, True)
    assert chosen(1000 + 1.5 * 256, recomputes=False) == (256, False, True)
    assert chosen(1000 + 5 * 4096, tokens=512) == (512, False, False)
    assert provision(found, 500, MOST, tokens=None, recomputes=None).text.startswith("MEMORY: ")
    assert provision(found, 1e9, MOST, tokens=None, recomputes=None).text is None


def test_a_step_of_few_sequences_is_no_full_pass():
    config = configured({"split": "random", "tuning": "full", **OPTIONS})
    data = curate_training(ROWS, config).dataset
    lengths = [sorted((len(r.sequence) + 2 for r in data.of(split)), reverse=True) for split in (None, "train")]
    assert most_of(config, data) == Most(
        longest=max(lengths[0]), learning=sum(lengths[1][:4]), evaluating=sum(lengths[0])
    )
    one = most_of(replace(config, micro_batch_size=1), data)
    assert one == Most(longest=max(lengths[0]), learning=max(lengths[1]), evaluating=max(lengths[0]))
    shared = most_of(replace(config, devices=2), data)
    assert shared.learning == -(-sum(lengths[1][:4]) // 2)
    found = footprint()
    assert found.peak(4096, most_of(config, data)) < found.peak(4096)
    assert found.peak(16, one) == found.peak(1, one)  # the longest is a pass of its own


def test_each_member_of_a_run_is_counted(tiny):
    predictor = tuned(tiny_encoder(), "full")
    config = replace(configured(OPTIONS), precision="float32")
    alone, five = (footprints(predictor, config, TEN, members)[False, False] for members in (1, 5))
    moving = sum(4 * weight.numel() for weight in predictor.parameters() if weight.requires_grad)
    assert five.copies - alone.copies == 4 * moving
    run = esmtune.train(ROWS, encoder=str(tiny), **OPTIONS | {"seeds": 2, "folds": 1})
    assert run.last is None


def test_features_that_are_streamed_are_not_in_memory(monkeypatch):
    predictor = tuned(tiny_encoder(), "frozen")
    config = configured({"split": "random", **OPTIONS})
    size = 4 * predictor.features_dim * len(TEN)
    assert size < MEASURED_BYTES

    def counted():
        (found,) = footprints(predictor, replace(config, precision="float32"), TEN).values()
        return found.features

    assert counted() == (1 + LOOKED_AT) * size
    monkeypatch.setattr("esmtune.footprint.SHARE_OF_MEMORY", 0.0)
    assert counted() == LOOKED_AT * size


def test_features_fit_by_what_a_container_and_other_processes_leave(monkeypatch):
    assert fits_in_memory(10 * 2**20)
    monkeypatch.setattr("esmtune.memory._limits", lambda groups, root: [(30 * 2**20, 0)])
    assert fits_in_memory(10 * 2**20)
    assert not fits_in_memory(10 * 2**20, 2)
    assert not fits_in_memory(13 * 2**20)


@pytest.mark.parametrize("version", ["1", "2"])
def test_limits_of_a_container_count(tmp_path, version):
    controllers, limit, used = {
        "1": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"), "2": ("", "memory.max", "memory.current"),
    }[version]  # fmt: skip
    groups = tmp_path / "cgroup"
    groups.write_text(f"3:{controllers}:/outer/inner\n")
    top = tmp_path / "sys/fs/cgroup" / controllers
    for folder, most in (("outer", "5000"), ("outer/inner", "8000")):
        (top / folder).mkdir(parents=True)
        (top / folder / limit).write_text(most)
        (top / folder / used).write_text("2000")
        (top / folder / "memory.stat").write_text(
            "total_inactive_file 500\n" if version == "1" else "inactive_file 500\n"
        )
    assert _left_by_limits(groups, tmp_path) == 3500
    (top / "outer" / limit).write_text("max")
    assert _left_by_limits(groups, tmp_path) == 6500


def test_a_run_says_what_it_held(tiny, tmp_path):
    said = []
    esmtune.train(ROWS, encoder=str(tiny), out=tmp_path / "run", watch=said.append, **OPTIONS)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert 0.1 < environment["peak_memory_gib"]["process"] < 10
    assert any(getattr(event, "text", "").startswith("Peak memory: ") for event in said)


def test_little_free_memory_makes_passes_small_and_changes_nothing(tiny, monkeypatch):
    options = OPTIONS | {"encoder": str(tiny), "tuning": "full"}
    plenty = esmtune.train(ROWS, **options)
    monkeypatch.setattr("esmtune.provisions.free_memory", lambda device: 1 << 20)
    said = []
    scarce = esmtune.train(ROWS, watch=said.append, **options)
    assert any(getattr(event, "text", "").startswith(("Memory: ", "MEMORY: ")) for event in said)
    assert scarce.config.tokens_per_batch < plenty.config.tokens_per_batch == 4096
    for one, other in zip(plenty.history, scarce.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)  # other batches, other rounding
