"""Heads, pools and what readouts are made of, against torch on one sequence at a time, NumPy and scikit-learn."""

import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import esmtune.heads
from esmtune import readouts
from esmtune.esm2 import Tokens
from esmtune.heads import head
from esmtune.pooling import POOLS, Pooled, mix, segment_max, segment_mean, segment_softmax, segment_sum
from esmtune.readouts import Convolution, Dropout, LayerMix, Standardize
from tests.conftest import TEN, tiny_encoder

LENGTHS = (4, 1, 9, 2, 30)  # shorter than a window, and longer


def features(dim=6, seed=0, lengths=LENGTHS):
    x = torch.randn(sum(lengths), dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_()


def pooled(x, lengths=LENGTHS):
    return Pooled.of(x, lengths, torch.arange(len(lengths)) + 100)


def close(got, wanted, tolerance=1e-9):
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)


def same_gradient(got, wanted, *inputs):
    """Two ways to compute something have the same gradient, of a sum in which every number has its own weight."""
    weights = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((y * weights).sum(), inputs, retain_graph=True) for y in (got, wanted))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (segment_sum, lambda x: x.sum(0, keepdim=True)),
        (segment_mean, lambda x: x.mean(0, keepdim=True)),
        (segment_max, lambda x: x.amax(0, keepdim=True)),
        (segment_softmax, lambda x: x.softmax(0)),
    ],
    ids=["sum", "mean", "max", "softmax"],
)
def test_what_is_asked_of_one_sequence_at_a_time(ours, theirs):
    x = features()
    ties = (x.detach() * 2).round().requires_grad_()  # of a maximum each has its share
    extreme = (x.detach() * 1e4).requires_grad_()  # no softmax of these overflows
    for values in (x, ties, extreme):
        got, wanted = ours(values, LENGTHS), torch.cat([theirs(part) for part in values.split(LENGTHS)])
        assert got.isfinite().all()
        close(got, wanted)
        same_gradient(got, wanted, values)


def test_pools_are_computed_in_float32_at_least():
    encoder = tiny_encoder()
    full = encoder(Tokens.of(TEN))
    half = replace(full, cls=full.cls.bfloat16(), residues=full.residues.bfloat16())
    for name, pool in POOLS.items():
        got = pool(half)
        assert got.dtype == torch.float32
        exact = pool(replace(half, cls=half.cls.double(), residues=half.residues.double()))
        assert exact.dtype == torch.float64
        close(got.double(), exact, 1e-6 * exact.abs().max().item())  # bfloat16 would be off by 1e-3
        if name == "mean":
            close(exact, torch.stack([r.double().mean(0) for r in half.residues.split(half.lengths)]))


@pytest.mark.parametrize("kernel", [1, 3, 7, 41])
def test_a_convolution_ends_where_the_sequence_ends(kernel):
    """Each sequence comes out as torch's own convolution of it alone, padded with zeros."""
    torch.manual_seed(0)
    x, convolution = features(), Convolution(6, 5, kernel=kernel).double()
    weight, bias = convolution.window.weight, convolution.window.bias
    alone = [F.conv1d(part.T[None], weight, bias, padding=kernel // 2)[0].T for part in x.split(LENGTHS)]
    got = convolution(x, LENGTHS)
    close(got, torch.cat(alone))
    same_gradient(got, torch.cat(alone), x, weight, bias)


@pytest.mark.parametrize("pool", ["mean", "residue"])
def test_stacked_convolutions_end_where_the_sequence_ends(pool):
    torch.manual_seed(0)
    part = head.build({"name": "conv", "pool": pool, "depth": 3, "kernel": 5, "channels": 4}, 6, 2).double().eval()
    part.standardize.fit(features(seed=2) * 3 + 1)
    x = features()
    rows = []
    for y in ((x - part.standardize.center) / part.standardize.spread).split(LENGTHS):
        y = y.T[None]
        for convolution in part.convolutions:
            y = F.conv1d(y, convolution.window.weight, convolution.window.bias, padding=2).relu()
        y = y[0].T
        rows.append(part.out(y.mean(0, keepdim=True) if pool == "mean" else y))
    got = part(pooled(x))
    close(got, torch.cat(rows))
    same_gradient(got, torch.cat(rows), x)


def test_light_attention_is_that_of_the_paper():
    """Figure 1 and section 2.3 of Stärk et al. 2021, with layer for batch normalization, by torch's own parts."""
    torch.manual_seed(0)
    part = head.build({"name": "light-attention", "kernel": 3, "hidden": 5}, 6, 2).double().eval()
    value, coefficient = (nn.Conv1d(6, 6, 3, padding=1).double() for _ in range(2))
    value.load_state_dict(part.value.window.state_dict())
    coefficient.load_state_dict({**part.coefficient.window.state_dict(), "bias": torch.full((6,), 3.0)})
    x, rows = features(), []
    for y in x.split(LENGTHS):
        v, a = value(y.T[None]), nn.Softmax(dim=-1)(coefficient(y.T[None]))
        both = torch.cat(((v * a).sum(-1), v.amax(-1)), dim=1)
        hidden = F.layer_norm(part.hidden(both), (5,), part.norm.weight, part.norm.bias)
        rows.append(part.out(hidden.relu()))
    got = part(pooled(x))
    close(got, torch.cat(rows))
    same_gradient(got, torch.cat(rows), x)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_weighs_residues_by_the_softmax_of_their_scores(heads):
    torch.manual_seed(0)
    part = head.build({"name": "attention", "heads": heads, "hidden": 5}, 6, 2).double().eval()
    nn.init.normal_(part.score.weight)
    x, rows = features(), []
    for y in x.split(LENGTHS):
        weights = torch.softmax(y @ part.score.weight.T, dim=0)
        rows.append(part.out(part.hidden((weights.T @ y).flatten()).relu()))
    got = part(pooled(x))
    close(got, torch.stack(rows))
    same_gradient(got, torch.stack(rows), x)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_begins_as_mlp_on_the_mean(heads):
    """Also where the means of training sequences differ far less than their residues do."""
    torch.manual_seed(0)
    attention = head.build({"name": "attention", "heads": heads}, 6, 2).double().eval()
    mlp = head.build({"name": "mlp", "depth": 1}, 6, 2).double().eval()
    with torch.no_grad():
        mlp.hidden.weight.copy_(attention.hidden.weight.unflatten(1, (heads, 6)).sum(1))
        mlp.hidden.bias.copy_(attention.hidden.bias)
        mlp.out.load_state_dict(attention.out.state_dict())
    lengths = LENGTHS * 120  # more than are measured at a time
    x = features(lengths=lengths) * 3 + 1
    means = pooled(segment_mean(x, lengths), (1,) * len(lengths))
    attention.fit(pooled(x, lengths))
    mlp.fit(means)
    close(attention(pooled(x, lengths)), mlp(means))


def test_layers_are_mixed_by_learned_weights():
    x, part = features(dim=6), LayerMix(3).double()
    layers = [x[:, :2], x[:, 2:4], x[:, 4:]]
    close(part(x), sum(layers) / 3)
    with torch.no_grad():
        part.scores.copy_(torch.tensor([1, 2, 3], dtype=torch.float64).log())
        part.gain.fill_(5.0)
    close(part(x), 5 * sum(share / 6 * layer for share, layer in zip((1, 2, 3), layers, strict=True)))


def test_layers_are_standardized_before_they_are_mixed():
    part, x = head.build({"name": "linear"}, 2, 1, 3).double(), features(dim=6)
    part.standardize.fit(x)
    center, spread = x.mean(0), x.std(0, unbiased=False)
    mixed = ((x - center) / spread).unflatten(1, (3, 2)).mean(1)
    close(part(pooled(x, (1,) * len(x))), part.out(mixed), 1e-9)


@pytest.mark.parametrize(
    ("spec", "hidden"),
    [
        ({"name": "linear"}, []),
        ({"name": "mlp", "depth": 1}, ["hidden"]),
        ({"name": "mlp", "depth": 3}, ["hidden", "deeper.0", "deeper.1"]),
    ],
    ids=str,
)
def test_one_layer_has_the_weights_of_the_file_format(spec, hidden):
    wanted = {f"{name}.{part}" for name in (*hidden, "out") for part in ("weight", "bias")}
    assert set(head.build(spec, 6, 2).state_dict()) == wanted | {"standardize.center", "standardize.spread"}


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 1000])
def test_statistics_of_many_points_are_taken_part_by_part(count, monkeypatch):
    """As NumPy's in float64, which never holds more than a part of the points."""
    monkeypatch.setattr(readouts, "CHUNK", 100 * 5)
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1e3, 1e-3, 1, 0]) + 1e3
    part, largest = Standardize(5), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
                largest.append(result.numel())
            return result

    with Watch():
        part.fit(x)
    assert max(largest) <= 500
    exact = x.double().numpy()
    np.testing.assert_allclose(part.center.numpy(), exact.mean(0), rtol=1e-6)
    spread = np.where(exact.std(0) > 1e-8, exact.std(0), 1.0)
    np.testing.assert_allclose(part.spread.numpy(), spread, rtol=1e-6)
    assert part.spread[4] == 1


def test_every_residue_has_a_seed_of_its_own():
    seeds = Pooled.of(torch.zeros(20_000, 1), (10_000, 10_000), torch.tensor([5, 6])).seeds
    assert len(seeds.unique()) == 20_000
    assert seeds[0] == 5
    assert seeds[10_000] == 6
    assert len(mix(torch.arange(-5000, 5000)).unique()) == 10_000
    twins = pooled(torch.ones(5, 40), (2, 3))
    assert twins.sequence_seeds.tolist() == [100, 101]
    dropped = Dropout(0.5)(twins.features, twins.seeds)
    assert len(dropped.unique(dim=0)) == 5


@pytest.mark.parametrize("name", ["conv", "light-attention"])
def test_no_two_dropouts_of_a_head_drop_alike(name):
    part = head.build({"name": name, **({"depth": 3} if name == "conv" else {})}, 6, 2)
    dropouts = [m for m in part.modules() if isinstance(m, Dropout)]
    drawn = {tuple(m(torch.ones(1, 60), torch.tensor([3]))[0].tolist()) for m in dropouts}
    assert len(drawn) == len(dropouts) == (3 if name == "conv" else 2)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "mlp", "hidden": 0}, "hidden is 0, expected 1 or more"),
        ({"name": "mlp", "dropout": 1}, "dropout is a share from 0 to below 1, got 1"),
        ({"name": "mlp", "pool": "max"}, "it can be 'mean', 'cls', 'residue'"),
        ({"name": "conv", "pool": "cls"}, "it can be 'mean', 'residue'"),
        ({"name": "conv", "kernel": 4}, "an odd number of residues, got 4"),
        ({"name": "conv", "kernel": -1}, "an odd number of residues, got -1"),
        ({"name": "conv", "channels": 0}, "channels is 0, expected 1 or more"),
        ({"name": "conv", "depth": 0}, "depth is 0, expected 1 or more"),
        ({"name": "conv", "dropout": -0.1}, r"from 0 to below 1, got -0\.1"),
        ({"name": "attention", "heads": 0}, "heads is 0, expected 1 or more"),
        ({"name": "attention", "hidden": -3}, "hidden is -3, expected 1 or more"),
        ({"name": "attention", "pool": "mean"}, "no option 'pool'"),
        ({"name": "light-attention", "kernel": 2}, "an odd number of residues, got 2"),
        ({"name": "light-attention", "hidden": 0}, "hidden is 0, expected 1 or more"),
        ({"name": "light-attention", "dropout": 1.5}, r"from 0 to below 1, got 1\.5"),
    ],
    ids=str,
)
def test_a_wrong_option_ends_in_a_sentence(spec, said):
    with pytest.raises(ValueError, match=said):
        head.build(spec, 6, 2)


@pytest.mark.parametrize("level", ["sequence", "residue"])
def test_a_solved_head_is_ridge_regression(level):
    from sklearn.linear_model import Ridge

    from esmtune.tasks import Total

    torch.manual_seed(0)
    part = head.build({"name": "ridge", "pool": "mean" if level == "sequence" else "residue"}, 4, 1, 2).double()
    lengths = (1,) * 40 if level == "sequence" else (3, 1, 16, 20)
    x = torch.randn(40, 8, dtype=torch.float64) * 3 + 1
    y = x @ torch.randn(8, 1, dtype=torch.float64) + torch.randn(40, 1, dtype=torch.float64)
    part.standardize.fit(x)
    seen = pooled(x, lengths)
    penalty = part.solve(seen, lambda outputs, of: Total(((outputs - y[of]) ** 2).sum(), len(of)), seed=0)
    standardized = ((x - x.mean(0)) / x.std(0, unbiased=False)).numpy()
    theirs = Ridge(alpha=penalty).fit(standardized, y.numpy())
    assert part.is_solved
    np.testing.assert_allclose(part(seen).detach().numpy()[:, 0], theirs.predict(standardized).ravel(), atol=1e-4)


def test_the_language_model_is_the_encoders_own():
    encoder, tokens = tiny_encoder(lm_head=True), Tokens.of(TEN)
    logits, own = encoder.logits(tokens), encoder.lm_head
    part = head.build({"name": "language-model"}, 32, 33)
    part.tie(encoder)
    assert torch.equal(part(encoder(tokens)), logits)
    assert encoder.lm_head is None  # saved once, with the head
    assert part.language_model is own
    assert {name.split(".")[0] for name in part.state_dict()} == {"standardize", "language_model"}


def test_a_head_of_ones_own_in_a_dozen_lines(monkeypatch):
    """The example of the documentation runs as it stands, and the head is known by its name."""
    text = esmtune.heads.__doc__
    example = textwrap.dedent(text[text.index("    import torch") :])
    assert len([line for line in example.splitlines() if line.strip() and "import" not in line]) <= 12
    monkeypatch.setattr(head, "_parts", dict(head._parts))
    exec(example, {})
    assert list(head.options("gated")) == ["hidden", "dropout"]
    encoder = tiny_encoder()
    part = head.build({"name": "gated", "hidden": "8"}, 32, 3)
    assert part(encoder(Tokens.of(["GGA", "MKVL"]))).shape == (2, 3)
    assert part.gate.out_features == 8
    with pytest.raises(ValueError, match="no option 'depth'"):
        head.build({"name": "gated", "depth": 2}, 32, 3)
