"""`esmtune doctor`: says pass where numbers are right, and finds whatever is made wrong."""

import pytest
import torch

import esmtune
from esmtune import attention, diagnosis, ways
from esmtune.attention import passes
from esmtune.diagnosis import Finding, doctor
from esmtune.esm2 import Tokens
from esmtune.ways import WAYS, Way


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One size of heads instead of five, and shorter timing."""
    monkeypatch.setattr(diagnosis, "HEADS", (16,))
    monkeypatch.setattr(diagnosis, "TIMED", (5, 7))
    monkeypatch.setattr(diagnosis, "PRECISIONS", ("float32",))
    passes.cache_clear()
    yield
    passes.cache_clear()


def row(found, way, precision="float32"):
    (each,) = (each for each in found.findings if (each.way, each.precision) == (way, precision))
    return each


def test_the_processor_passes_in_both_precisions(monkeypatch):
    monkeypatch.setattr(diagnosis, "PRECISIONS", ("float32", "bfloat16"))
    said = []
    found = esmtune.doctor("cpu", said.append)
    assert (found.device, found.precision, found.is_healthy) == ("cpu", "float32", True)
    assert len(found.findings) == 2 * (1 + len(WAYS)) == said[-1].total
    for precision, least in (("float32", 1e-9), ("bfloat16", 1e-4)):
        for way in ("auto", "runs", "plain", "padded"):
            each = row(found, way, precision)
            assert (each.verdict, each.why) == ("pass", "")
            assert set(each.errors) == {"golden", "company", "padding", "gradient"}
            assert least < each.errors["golden"]  # it does compare with something more exact
            bounds = {name: diagnosis.tolerance(name, precision, "cpu") for name in each.errors}
            assert all(error < bounds[name] / 2 for name, error in each.errors.items())
            assert min(each.microseconds) > 0
        assert row(found, "varlen", precision).verdict == "not available"
    assert row(found, "auto").takes == "runs"
    assert row(found, "varlen").why == "on cuda only"
    assert row(found, "varlen").microseconds is None


def leaking(q, k, v, spans):
    return WAYS["runs"].compute(q, k, v, spans) + 0.01 * v.mean(0)  # of all sequences


def looks_at_pad(q, k, v, spans):
    return WAYS["runs"].compute(q, k, v, type(spans)(spans.lengths, spans.device))


def backward_off(q, k, v, spans):
    y = WAYS["runs"].compute(q, k, v, spans)
    return y.detach() + 1.05 * (y - y.detach())


def not_a_number(q, k, v, spans):
    return WAYS["runs"].compute(q, k, v, spans) * torch.nan


@pytest.mark.parametrize(
    ("wrong", "failed"),
    [
        (leaking, {"golden", "company", "gradient", "padding"}),
        (looks_at_pad, {"padding"}),
        (backward_off, {"gradient"}),
        (not_a_number, {"golden", "company", "gradient", "padding"}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_is_wrong_is_found_by_the_test_for_it(monkeypatch, wrong, failed):
    monkeypatch.setitem(WAYS, "padded", Way(compute=wrong))
    found = doctor("cpu")
    assert row(found, "padded").verdict == "fail"
    assert set(row(found, "padded").failed) == failed
    assert row(found, "auto").verdict == "pass"
    assert found.is_healthy  # it is not taken here


def test_a_leak_is_found_in_bfloat16_too(monkeypatch):
    monkeypatch.setattr(diagnosis, "PRECISIONS", ("bfloat16",))

    def leak(q, k, v, spans):
        return WAYS["runs"].compute(q, k, v, spans) + (0.05 * v.mean(0)).to(v.dtype)

    monkeypatch.setitem(WAYS, "padded", Way(compute=leak))
    monkeypatch.setitem(WAYS, "plain", Way(compute=looks_at_pad))
    found = doctor("cpu")
    assert {"company"} <= set(row(found, "padded", "bfloat16").failed)
    assert set(row(found, "plain", "bfloat16").failed) == {"padding"}
    assert row(found, "auto", "bfloat16").verdict == "pass"


def test_padding_is_tested_against_the_same_sequences_without_it():
    rows = diagnosis._followed(["MK", "V"])
    assert rows.ids.tolist() == [0, 20, 15, 2, 1, 1, 1, 0, 7, 2, 1, 1, 1]
    assert (rows.lengths, rows.has_pad) == ((7, 6), True)
    assert Tokens.of(["MK<pad>"]).has_pad


def test_auto_goes_round_what_is_wrong(monkeypatch):
    """As on MPS: the first choice computes wrong numbers without a word, so the second is taken, and that is said."""

    def wrong(q, k, v, spans):
        return q + k + v

    def raises(q, k, v, spans):
        raise NotImplementedError("The operator 'aten::x' is not currently implemented\nlong")

    real = attention.attend
    monkeypatch.setitem(WAYS, "varlen", Way(compute=wrong))
    monkeypatch.setitem(WAYS, "flash", Way(compute=raises))
    monkeypatch.setitem(attention.PREFERRED, "cpu", ("varlen", "flash", "padded"))

    def as_elsewhere(q, k, v, spans):
        if attention._only.get() is None:
            name = attention.choose(q.device, q.dtype, q.shape[2], hides=spans.visible is not None)
            return WAYS[name].compute(q, k, v, spans)
        return real(q, k, v, spans)

    monkeypatch.setattr("esmtune.esm2.attend", as_elsewhere)
    monkeypatch.setattr(diagnosis, "attend", as_elsewhere)
    with pytest.warns(RuntimeWarning) as said:
        found = doctor("cpu")
    words = [str(each.message) for each in said]
    assert any(word.startswith("attention 'varlen' is not used on cpu in torch.float32, heads of 16") for word in words)
    assert row(found, "auto").verdict == "pass"
    assert row(found, "varlen").verdict == "fail"
    assert row(found, "flash").why == "The operator 'aten::x' is not currently implemented"
    assert found.is_healthy


def test_the_shell_says_it_and_ends_with_one_where_what_is_used_is_wrong(monkeypatch, shell):
    good = shell("doctor")
    assert good.code == 0
    assert "Used unless asked otherwise: cpu in float32, which passes." in good.out
    assert "not available: on cuda only" in good.out
    assert "auto: runs" in good.out
    monkeypatch.setitem(ways.KERNELS, "fused", lambda q, k, v, visible=None: v + 0 * (q + k))
    bad = shell("doctor", "--accelerator", "cpu")
    assert bad.code == 1
    assert "cpu in float32, which would be used, computes wrong numbers" in bad.err
    assert "fail: golden" in bad.out
    absent = shell("doctor", "--accelerator", "mps")
    assert (absent.code, absent.out) == (2, "")
    assert "there is no accelerator 'mps' here. There are: auto, cpu" in absent.err


def test_a_number_that_is_none_is_no_pass():
    each = Finding(device="cpu", precision="float32", way="runs", errors={"golden": float("nan")})
    assert each.verdict == "fail"


@pytest.mark.gpu
def test_a_gpu_passes():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    assert doctor("cuda").is_healthy


@pytest.mark.gpu
def test_a_gpu_trains_to_what_a_processor_does(tiny):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    rows = [("MKTV", 0.1), ("GGSG", 0.9), ("MKTI", 0.2), ("GGAG", 1.1)] * 3
    losses = [
        esmtune.train(rows, encoder=str(tiny), tuning="full", epochs=2, precision="float32", accelerator=accelerator,
                      valid_fraction=0, test_fraction=0).history[-1]["train_loss"]
        for accelerator in ("cpu", "cuda")
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_what_a_gpu_trained_predicts_there_and_is_saved(tiny, tmp_path, tuning):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    rows = [("MKTV", 0.1), ("GGSG", 0.9), ("MKTI", 0.2), ("GGAG", 1.1)] * 3
    run = esmtune.train(rows, encoder=str(tiny), tuning=tuning, epochs=2, accelerator="cuda", out=tmp_path / "run",
                        precision="float32", valid_fraction=0, test_fraction=0, folds=1)  # fmt: skip
    assert {weight.device.type for weight in run.predictor.parameters()} == {"cuda"}
    here = esmtune.load(tmp_path / "run", verify=True).predict(["MKTV", "GGSG"])
    assert run.predictor.predict(["MKTV", "GGSG"]) == pytest.approx(here, rel=1e-3)
