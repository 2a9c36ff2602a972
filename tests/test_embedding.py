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


def test_half_precision_in_and_out(real_weights):
    full = esmtune.embed(real_weights, list(TEN)).vectors
    half = esmtune.embed(real_weights, list(TEN), precision="bfloat16", dtype="float16").vectors
    assert half.dtype == np.float16
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half.astype(np.float32), axis=1)
    assert cosine.min() > 0.999


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
