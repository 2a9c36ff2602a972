"""Embeddings against transformers' hidden states, and the order and shape of what comes back."""

import numpy as np
import pytest
import torch

import esmtune
from tests.conftest import TEN


@pytest.fixture(scope="module")
def states(tiny):
    """transformers' hidden states of each of the ten sequences, by layer, with <cls> and <eos>."""
    transformers = pytest.importorskip("transformers")
    model = transformers.EsmModel.from_pretrained(tiny, add_pooling_layer=False).eval()
    from esmtune.esm2 import Tokens

    with torch.inference_mode():
        return [
            torch.stack(model(Tokens.of([s]).ids[None], output_hidden_states=True).hidden_states)[:, 0] for s in TEN
        ]


@pytest.mark.parametrize("budget", [1, 60, 4096])
@pytest.mark.parametrize("layers", [(-1,), (0, 2, 1), (-3,)], ids=str)
@pytest.mark.parametrize("pool", ["mean", "cls", "residue"])
def test_embeddings_are_transformers_hidden_states(tiny, states, pool, layers, budget):
    got = esmtune.embed(tiny, list(TEN), layers=layers, pool=pool, tokens_per_batch=budget)
    reduce = {
        "mean": lambda x: x[:, 1:-1].mean(1, keepdim=True),
        "cls": lambda x: x[:, :1],
        "residue": lambda x: x[:, 1:-1],
    }
    expected = torch.cat([reduce[pool](x[list(layers)]).transpose(0, 1) for x in states]).numpy()
    if len(layers) == 1:
        expected = expected[:, 0]
    np.testing.assert_allclose(got.vectors, expected, rtol=0, atol=2e-5)
    assert got.lengths == ([len(s) for s in TEN] if pool == "residue" else None)
    for vectors, sequence in zip(got.each(), TEN, strict=True):
        assert len(vectors) == (len(sequence) if pool == "residue" else len(layers) if len(layers) > 1 else 32)


@pytest.mark.parametrize("units", ["", "avx512_bf16"])
@pytest.mark.parametrize("pool", ["mean", "cls", "residue"])
def test_half_precision_in_and_out(real_weights, pool, units, monkeypatch):
    monkeypatch.setattr("esmtune.attention._units", lambda: units)  # whatever this processor has
    full = esmtune.embed(real_weights, list(TEN), pool=pool, precision="float32").vectors
    half = esmtune.embed(real_weights, list(TEN), pool=pool, precision="bfloat16", dtype="float16").vectors
    assert half.dtype == np.float16
    assert not np.array_equal(half, full.astype(np.float16))  # computed in bfloat16, not only written short
    half = half.astype(np.float32)
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > {"mean": 0.9995, "cls": 0.9995, "residue": 0.999}[pool]


@pytest.mark.parametrize("layers", [(-1,), (0, 1)])
def test_float16_is_float32_written_short(tiny, layers):
    full, short = (esmtune.embed(tiny, list(TEN), layers=layers, dtype=d).vectors for d in ("float32", "float16"))
    assert (full.dtype, short.dtype) == (np.float32, np.float16)
    assert np.array_equal(short, full.astype(np.float16))


@pytest.mark.parametrize("budget", [1, 50, 300])
def test_rows_come_back_in_the_order_of_the_input(tiny, budget):
    """Lengths from 1 to 120 in no order, many alike: each row is that of its own sequence embedded alone."""
    random = np.random.default_rng(0)
    sequences = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in random.integers(1, 120, 40)]
    sequences += [sequences[3], "M", "M"]
    for pool in ("mean", "residue"):
        got = esmtune.embed(tiny, sequences, pool=pool, tokens_per_batch=budget)
        assert got.ids == [str(number) for number in range(1, 44)]
        for sequence, rows in zip(sequences[::6], list(got.each())[::6], strict=True):
            alone = esmtune.embed(tiny, [sequence], pool=pool).vectors
            np.testing.assert_allclose(rows, alone if pool == "residue" else alone[0], rtol=0, atol=2e-5)


def test_progress_ends_at_the_end(tiny):
    said = []
    esmtune.embed(tiny, list(TEN), tokens_per_batch=60, watch=said.append)
    done = [event.done for event in said if hasattr(event, "done")]
    assert done == sorted(done)
    assert done[-1] == len(TEN)
    assert len(done) > 5


@pytest.mark.parametrize(
    ("layers", "sentence"), [([], "no layer is asked for"), ([0, 3], "no layer 3: this encoder has 0"), ([-4], "-4")]
)
def test_layers_that_are_not_there(tiny, tmp_path, layers, sentence):
    with pytest.raises(ValueError, match=sentence):
        esmtune.embed(tiny, list(TEN), layers=layers, out=tmp_path / "e.npz")
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_announced_and_repeat():
    said = []
    first, again = (esmtune.embed("random:esm2_t6_8M_UR50D", ["MKTV"], watch=said.append) for _ in range(2))
    assert sum("RANDOM" in str(event) for event in said) == 2
    assert first.about["encoder"] == "random:esm2_t6_8M_UR50D"
    assert np.array_equal(first.vectors, again.vectors)


def test_bad_rows_are_refused_or_listed(tiny):
    with pytest.raises(esmtune.records.BadRowsError, match="row 2"):
        esmtune.embed(tiny, ["MKTV", "MK-V"])
    said = []
    got = esmtune.embed(tiny, ["MKTV", "MK-V", "GG"], skip_bad_rows=True, watch=lambda e: said.append(str(e)))
    assert got.ids == ["1", "3"]
    assert any("row 2" in text for text in said)


def test_long_sequences_are_whole_unless_cut(tiny):
    long = "MKTVRQERLK" * 150
    whole, cut = (esmtune.embed(tiny, [long], pool="residue", max_length=n).vectors for n in (None, 1000))
    assert (len(whole), len(cut)) == (1500, 1000)
    assert not np.allclose(whole[:1000], cut, atol=1e-3)
