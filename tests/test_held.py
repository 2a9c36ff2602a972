"""Encoders whose matrices are held in bfloat16: the same numbers as from float32 computed in it, in half the memory."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import esmtune
from esmtune.cache import cache_at
from esmtune.embedding import embed_sequences, kind_of
from esmtune.encoders import encoder_digest
from esmtune.esm2 import ESM2
from esmtune.predictor import find_encoder
from tests.conftest import TEN, in_new_process

ROWS = [(sequence, len(sequence) / 100) for sequence in TEN]
OPTIONS = {"epochs": 1, "valid_fraction": 0.0, "test_fraction": 0.0, "folds": 1}
MATRICES = {"query", "key", "value", "out", "expand", "contract"}


def rounded(encoder: ESM2) -> set[str]:
    """What is in bfloat16, by the last word of a module's path."""
    return {name.split(".")[-2] for name, weight in encoder.named_parameters() if weight.dtype == torch.bfloat16}


@pytest.fixture
def passed(monkeypatch):
    """What is rounded in each encoder that sequences pass."""
    found, real = [], ESM2.representations

    def representations(self, tokens, layers):
        found.append(rounded(self))
        return real(self, tokens, layers)

    monkeypatch.setattr(ESM2, "representations", representations)
    return found


@pytest.fixture(scope="module")
def names(tiny, tmp_path_factory):
    """Everything that an encoder may come from."""
    folder = tmp_path_factory.mktemp("names")
    torch.save(load_file(tiny / "model.safetensors"), folder / "w.pt")
    for tuning in ("frozen", "full", "lora"):
        esmtune.train(ROWS, encoder=str(tiny), tuning=tuning, out=folder / tuning, seeds=2, **OPTIONS)
    runs = {f"{tuning} run": folder / tuning / "predictor" / "members" / "0" for tuning in ("frozen", "full", "lora")}
    ensembles = {f"{tuning} ensemble": folder / tuning for tuning in ("frozen", "full", "lora")}
    return {"folder": tiny, "file": tiny / "model.safetensors", "pickle": folder / "w.pt"} | runs | ensembles


@pytest.mark.parametrize("name", ["folder", "file", "pickle", "frozen run", "full run", "lora run"])
def test_embeddings_are_those_of_float32_computed_in_bfloat16(names, passed, tmp_path, name):
    options = {"precision": "bfloat16", "pool": "residue", "layers": (1, 2), "tokens_per_batch": 4096}
    found = esmtune.embed(names[name], list(TEN), cache=str(tmp_path), **options)
    assert passed
    assert all(what == MATRICES for what in passed)
    encoder, _, _ = find_encoder(str(names[name]))
    assert not rounded(encoder)
    assert found.about["sha256"] == encoder_digest(encoder)  # of what it is, not of how it is held
    expected = embed_sequences(encoder, list(TEN), dtype=np.dtype("float32"), **options)
    assert np.array_equal(found.vectors, expected)
    kept = cache_at(str(tmp_path)).read(kind_of(encoder, "residue", "bfloat16"), (1, 2), list(TEN))
    assert all(vectors is not None for vectors in kept)  # by those who hold it in float32 too


def test_embeddings_in_float32_are_of_an_encoder_in_float32(names, passed):
    esmtune.embed(names["folder"], list(TEN), precision="float32")
    assert passed == [set()]


@pytest.mark.parametrize("name", ["frozen run", "full run", "lora run"])
@pytest.mark.parametrize("kind", ["run", "ensemble"])
def test_predictions_are_those_of_float32_computed_in_bfloat16_bit_for_bit(names, passed, name, kind):
    path = names[name.replace("run", kind)]
    frame = esmtune.predict(path, list(TEN), precision="bfloat16")
    # An ensemble on a frozen encoder shares it, held or not.
    assert len(passed) == (1 if kind == "run" or "frozen" in name else 2)
    assert all(what == (set() if "lora" in name else MATRICES) for what in passed)  # PEFT's adapters take float32
    loaded = esmtune.load(path, verify=True)
    loaded.precision = "bfloat16"
    assert frame["prediction"].to_list() == loaded.predict(TEN)
    before = len(passed)
    assert esmtune.predict(path, list(TEN), precision="float32")["prediction"].to_list() != loaded.predict(TEN)
    assert not any(passed[before:])


def test_what_is_verified_or_was_loaded_before_stays_in_float32(names, passed):
    path = names["full run"]
    loaded = esmtune.load(path)
    esmtune.predict(loaded, list(TEN), precision="bfloat16")
    esmtune.predict(path, list(TEN), precision="bfloat16", verify=True)
    assert passed
    assert not any(passed)


@pytest.mark.parametrize("name", ["encoder", "predictor"])
def test_a_large_encoder_takes_half_of_its_memory(tmp_path, name):
    """An encoder of 253 MiB, whose largest weight has 14 MiB; what else a process takes is measured before."""
    script = """
import sys, torch
import esmtune
from esmtune.encoders import load_encoder, save_huggingface
from esmtune.esm2 import ESM2, ESM2Config
from esmtune.memory import peak_memory
from esmtune.predicting import Use
from esmtune.predictor import Predictor
folder = sys.argv[1]
if sys.argv[2] == "write":
    torch.manual_seed(0)
    save_huggingface(ESM2(ESM2Config(num_layers=6, embed_dim=960, num_heads=20)), folder)
    rows = [("MKTV", 1.5), ("MKTI", 2.5), ("MKTL", 0.5)]
    esmtune.train(rows, encoder=folder, tuning="full", max_steps=1, out=folder + "-run", valid_fraction=0,
                  test_fraction=0, folds=1, references=0, epochs=1)
else:
    before = peak_memory().process
    if "encoder" == sys.argv[2]:
        load_encoder(folder, held="bfloat16")
    else:
        Predictor.load(folder + "-run", use=Use("cpu", "bfloat16"))
    print((peak_memory().process - before) / 2**20)
"""
    (tmp_path / "load.py").write_text(script)
    folder = tmp_path / "large"
    assert in_new_process(tmp_path / "load.py", folder, "write", PYTHONPATH=".").code == 0
    answer = in_new_process(tmp_path / "load.py", folder, name, PYTHONPATH=".")
    assert answer.code == 0, answer.err
    assert 253 / 2 < float(answer.out) < 253 / 2 + 60
