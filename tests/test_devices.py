"""What is computed on, and in what: chosen by what the device has, and the same in training, evaluation, prediction."""

from pathlib import Path

import pytest
import torch

import esmtune
from esmtune.devices import choose_device, choose_precision, processor_vendor
from tests.conftest import TEN

ROWS = [(sequence, float(len(sequence) % 7) + number / 10) for number, sequence in enumerate(TEN)]
OPTIONS = {"epochs": 2, "valid_fraction": 0.2, "test_fraction": 0.2}


@pytest.mark.parametrize(
    ("amx", "avx512", "vendor", "expected"),
    [
        (1, 1, "GenuineIntel", "bfloat16"),
        (0, 1, "AuthenticAMD", "bfloat16"),
        (0, 1, "GenuineIntel", "float32"),
        (0, 1, "", "float32"),
        (0, 0, "AuthenticAMD", "float32"),
    ],
)
def test_auto_takes_bfloat16_where_a_processor_is_faster_in_it(monkeypatch, amx, avx512, vendor, expected):
    monkeypatch.setattr("esmtune.devices.processor_vendor", lambda: vendor)
    monkeypatch.delenv("ESMTUNE_PRECISION")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    assert choose_precision("auto", "cpu") == expected
    assert choose_precision("float32", "cpu") == "float32"
    assert choose_precision("bfloat16", "cpu") == "bfloat16"
    assert choose_precision("auto", "mps") == "float32"
    monkeypatch.setenv("ESMTUNE_PRECISION", "bfloat16")
    assert choose_precision("auto", "cpu") == "bfloat16"
    assert choose_precision("float32", "cpu") == "float32"
    monkeypatch.setenv("ESMTUNE_PRECISION", "half")
    with pytest.raises(ValueError, match="ESMTUNE_PRECISION is 'half', expected one of auto, float32, bfloat16"):
        choose_precision("auto", "cpu")


def test_the_maker_of_a_processor_is_read_where_a_system_tells_it():
    if not Path("/proc/cpuinfo").is_file() or "vendor_id" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this system does not say who made its processor")
    assert processor_vendor() in Path("/proc/cpuinfo").read_text()
    assert processor_vendor().isalnum()


@pytest.mark.parametrize("has", [True, False])
def test_auto_takes_what_a_gpu_has(monkeypatch, has):
    monkeypatch.delenv("ESMTUNE_PRECISION")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has or including_emulation)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    assert choose_precision("auto", "cuda") == ("bfloat16" if has else "float32")


@pytest.mark.parametrize("tuning", ["frozen", "full", "lora"])
def test_training_and_predicting_compute_in_the_same_precision(tiny, tmp_path, tuning):
    said = []
    run = esmtune.train(ROWS, encoder=str(tiny), tuning=tuning, precision="bfloat16", out=tmp_path / "run",
                        watch=said.append, **OPTIONS)  # fmt: skip
    assert any(getattr(event, "text", "").startswith("Computing on cpu in bfloat16") for event in said)
    assert run.config.precision == "bfloat16"
    rows = [TEN[int(id) - 1] for id in run.predictions["id"]]
    written = run.predictions["prediction"].to_list()
    half = esmtune.predict(tmp_path / "run", rows, precision="bfloat16")["prediction"].to_list()
    full = esmtune.predict(tmp_path / "run", rows, precision="float32")["prediction"].to_list()
    assert half == pytest.approx(written, abs=1e-4)  # batches of other company round otherwise
    assert full != written
    assert full == pytest.approx(written, abs=0.1)


def test_weights_norms_and_heads_stay_in_float32(tiny):
    run = esmtune.train(ROWS, encoder=str(tiny), tuning="full", precision="bfloat16", **OPTIONS)
    assert {weight.dtype for weight in run.predictor.state_dict().values() if weight.is_floating_point()} <= {
        torch.float32,
        torch.float64,
    }
    with torch.inference_mode():
        seen = run.predictor.seen(esmtune.esm2.Tokens.of(["MKTV"]))  # pyright: ignore[reportAttributeAccessIssue]
    assert {layer.residues.dtype for layer in seen} == {torch.float32}


def test_golden_rows_are_in_float32(tiny, tmp_path):
    esmtune.train(ROWS, encoder=str(tiny), tuning="full", precision="bfloat16", out=tmp_path / "run", **OPTIONS)
    esmtune.load(tmp_path / "run", verify=True)
    assert esmtune.predict(tmp_path / "run", list(TEN), verify=True, precision="bfloat16")["problem"].null_count() == 10
