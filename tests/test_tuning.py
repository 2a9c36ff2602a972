"""Laws of every tuning: what it says moves, moves; nothing else does; and a wrong option is named."""

import inspect
import re

import pytest
import torch

import esmtune
from esmtune.adapter_files import load_adapter, save_adapter
from esmtune.adapters import adapter_weights, is_adapted, merge
from esmtune.esm2 import ESM2, ESM2Config, Tokens
from esmtune.tuning import EVERY_MAP, tuning
from tests.conftest import TEN, tiny_encoder

every_tuning = pytest.mark.parametrize("name", list(tuning))
ADAPTS = [name for name in tuning if "targets" in tuning.options(name)]
SMALL = {"last": {"layers": 1}}  # for an encoder of two layers
TOKENS = Tokens.of([*TEN[:3], "X<mask>ARNDCQEGHILKMFPSTWYVBUZO"])


def frozen_encoder(**options) -> ESM2:
    return tiny_encoder(**options).double().requires_grad_(False)


def build(name, encoder, **options):
    torch.manual_seed(0)
    return tuning.build({"name": name, **SMALL.get(name, {}), **options}, encoder)


def step(encoder, factors, rate=0.1):
    """One step of SGD on a random projection of the residues, over those weights that are said to move."""
    torch.manual_seed(1)
    moving = [encoder.get_parameter(n).requires_grad_() for n in factors]
    if not moving:
        return
    groups = [{"params": [w], "lr": rate * factor} for w, factor in zip(moving, factors.values(), strict=True)]
    x = encoder(TOKENS).residues
    (x * torch.randn(x.shape, dtype=x.dtype)).mean().backward()
    torch.optim.SGD(groups, lr=rate).step()
    encoder.requires_grad_(False).zero_grad()


def learned(name) -> ESM2:
    """An encoder after two steps: some weights of an adapter begin at zero, and only then have others a gradient."""
    encoder = frozen_encoder()
    factors = build(name, encoder)
    for _ in range(2):
        step(encoder, factors)
    return encoder


def snapshot(encoder):
    return {name: weight.clone() for name, weight in encoder.state_dict().items()}


@torch.inference_mode()
def residues(encoder):
    return encoder(TOKENS).residues


@every_tuning
def test_what_a_tuning_says_moves_and_nothing_else_does(name):
    """The gradient of a key's bias is not zero: in ESM-2 a bias turns with its position."""
    encoder = frozen_encoder()
    factors = build(name, encoder)
    before = snapshot(encoder)
    for _ in range(2):
        step(encoder, factors)
    moved = {n for n, weight in encoder.state_dict().items() if not torch.equal(weight, before[n])}
    assert moved == set(factors)


@every_tuning
def test_a_tuning_leaves_the_encoder_as_it_was(name):
    """It may add weights; it changes none, freezes and frees none, and the outputs stay what they were."""
    plain, encoder = frozen_encoder(), frozen_encoder()
    factors = build(name, encoder)
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    added = adapter_weights(encoder)
    kept = {n.replace(".base_layer", ""): w for n, w in encoder.state_dict().items() if n not in added}
    assert list(kept) == list(plain.state_dict())
    assert all(torch.equal(kept[n], w) for n, w in plain.state_dict().items())
    assert is_adapted(encoder) == bool(added) == (name in ADAPTS)
    assert not added or set(factors) == set(added)
    assert all(0 < factor <= 1 for factor in factors.values())
    torch.testing.assert_close(residues(encoder), residues(plain), rtol=0, atol=1e-6)  # HRA starts in float32


@every_tuning
def test_merged_equals_unmerged(name):
    encoder = learned(name)
    before = residues(encoder)
    merge(encoder)
    assert list(encoder.state_dict()) == list(frozen_encoder().state_dict())
    torch.testing.assert_close(residues(encoder), before, rtol=0, atol=1e-9)


def test_merging_a_run_says_by_how_much_it_differs(tiny, tmp_path, shell, monkeypatch):
    rows = [(sequence, float(number)) for number, sequence in enumerate(TEN)]
    options = {"encoder": str(tiny), "epochs": 2, "folds": 1, "valid_fraction": 0.2, "test_fraction": 0.0}
    esmtune.train(rows, out=tmp_path / "run", tuning="lora", **options)
    answer = shell("merge", tmp_path / "run", "--out", tmp_path / "merged")
    assert answer.code == 0, answer.err
    words = " ".join(answer.err.split())
    far = float(re.search(r"differ by (\S+) in float32\.", words).group(1))
    assert far < 1e-5
    before, after = esmtune.load(tmp_path / "run"), esmtune.load(tmp_path / "merged")
    assert not is_adapted(after.encoder)
    assert after.predict(TEN) == pytest.approx(before.predict(TEN), abs=1e-5 * 3)  # labels have a deviation of 3
    monkeypatch.setenv("ESMTUNE_PRECISION", "bfloat16")
    said = []
    esmtune.merge(tmp_path / "run", out=tmp_path / "again", watch=said.append)
    assert "in bfloat16 (bfloat16 rounds more: --precision float32 predicts as before)." in said[-1].text
    frozen = esmtune.train(rows, **options)
    with pytest.raises(ValueError, match="no adapters to merge: it was tuned by 'frozen'"):
        esmtune.merge(frozen, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@every_tuning
def test_saved_equals_loaded_bit_for_bit(name, tmp_path):
    encoder, again = learned(name), frozen_encoder()
    if name in ADAPTS:
        save_adapter(encoder, tmp_path)
        load_adapter(again, tmp_path)
    else:
        build(name, again)
        again.load_state_dict(encoder.state_dict())
    assert list(again.state_dict()) == list(encoder.state_dict())
    assert all(torch.equal(again.state_dict()[n], w) for n, w in encoder.state_dict().items())
    assert torch.equal(residues(again), residues(encoder))


@every_tuning
def test_the_same_seed_gives_the_same_weights(name):
    first, second, third = frozen_encoder(), frozen_encoder(), frozen_encoder()
    build(name, first)
    build(name, second)
    torch.manual_seed(5)
    tuning.build({"name": name, **SMALL.get(name, {})}, third)
    assert all(torch.equal(second.state_dict()[n], w) for n, w in first.state_dict().items())
    if name in {"lora", "dora", "loha", "lokr", "hra"}:
        assert any(not torch.equal(third.state_dict()[n], w) for n, w in first.state_dict().items())


@every_tuning
def test_company_changes_nothing(name):
    encoder = learned(name).train()
    with torch.inference_mode():
        alone = encoder(Tokens.of([TEN[1]])).residues
        crowd = encoder(Tokens.of([TEN[0], TEN[1], "MKV"])).residues[len(TEN[0]) : -3]
    torch.testing.assert_close(alone, crowd, rtol=0, atol=1e-12)  # float64: a hundred roundings of 1e-16 and some


@every_tuning
def test_a_wrong_option_is_named(name):
    with pytest.raises(ValueError, match=f"tuning '{name}' has no option 'colour'.* It has: "):
        tuning.resolve({"name": name, "colour": 1})
    for option, parameter in tuning.options(name).items():
        if parameter.annotation is not str:
            with pytest.raises(ValueError, match=f"tuning '{name}', option '{option}': got 'many', expected"):
                tuning.resolve({"name": name, option: "many"})


@every_tuning
def test_a_tuning_says_what_it_is(name):
    """A docstring, a default for every option, and for a published method its DOI."""
    text = inspect.getdoc(tuning[name]) or ""
    assert len(text) > 20
    assert all(parameter.default is not parameter.empty for parameter in tuning.options(name).values())
    assert "https://doi.org/10." in text or name in {"frozen", "last"}


@pytest.mark.parametrize("name", ADAPTS)
def test_targets_choose(name):
    encoder = frozen_encoder(lm_head=True)
    factors = build(name, encoder, targets="value")
    assert {n.rsplit(".value.")[0] for n in factors} == {"layers.0", "layers.1"}
    with pytest.raises(ValueError, match=r"target 'vallue' matches nothing\. Did you mean 'value'"):
        build(name, frozen_encoder(), targets="vallue")


WRONG = [
    ("last", {"layers": 0}, "encoder has 2: write 1 to that"),
    ("last", {"layers": 3}, "encoder has 2: write 1 to that"),
    ("full", {"layer_decay": 0.0}, "layer_decay=0.0: write a number above 0"),
    ("full", {"layer_decay": 1.1}, "layer_decay=1.1"),
    ("lora", {"rank": 0}, "rank=0: write 1 or more"),
    ("lora", {"alpha": 0}, "alpha=0: write 1 or more"),
    ("dora", {"dropout": 1.0}, "dropout=1.0: write a number from 0"),
    ("lora", {"dropout": -0.1}, "dropout=-0.1"),
    ("loha", {"rank": -1}, "rank=-1"),
    ("lokr", {"alpha": -2}, "alpha=-2"),
    ("oft", {"block": 5}, "block=5: write a divisor of 32"),
    ("oft", {"block": 1}, "block=1"),
    ("oft", {"block": 0}, "block=0"),
    ("hra", {"rank": 3}, "rank=3: write an even number"),
]


@pytest.mark.parametrize(("name", "options", "sentence"), WRONG, ids=str)
def test_a_value_that_cannot_be_is_named(name, options, sentence):
    encoder = frozen_encoder()
    with pytest.raises(ValueError, match=rf"tuning '{name}' has .*{sentence}"):
        tuning.build({"name": name, **options}, encoder)
    assert not is_adapted(encoder)


def test_names_of_what_moves():
    names = {n for n, _ in tiny_encoder().named_parameters()}
    assert build("frozen", frozen_encoder()) == {}
    assert set(build("full", frozen_encoder())) == names
    assert set(build("last", frozen_encoder())) == {n for n in names if n.startswith(("layers.1.", "norm."))}
    biases = set(build("bitfit", frozen_encoder(lm_head=True)))
    assert biases == {n for n in names if n.endswith(".bias")}
    assert {"norm.bias", "layers.0.key.bias", "layers.1.attention_norm.bias"} < biases
    assert len(biases) == 2 * 8 + 1


def test_each_layer_learns_slower_than_the_one_above():
    encoder = ESM2(ESM2Config(num_layers=12, embed_dim=16, num_heads=2), lm_head=True)
    factors = tuning.build({"name": "full", "layer_decay": "0.5"}, encoder)
    assert factors["embed_tokens.weight"] == 0.5**12
    assert factors["layers.0.query.weight"] == 0.5**11
    assert factors["layers.1.query.weight"] == 0.5**10  # and not that of layer 11, which begins alike
    assert factors["layers.10.contract.bias"] == 0.5
    assert factors["layers.11.query.weight"] == factors["norm.weight"] == factors["lm_head.bias"] == 1
    assert set(tuning.build({"name": "full"}, encoder).values()) == {1.0}


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_dropout_is_of_training_alone(name):
    encoder = frozen_encoder()
    factors = build(name, encoder, dropout=0.5)
    for _ in range(2):
        step(encoder, factors)
    assert torch.equal(residues(encoder), residues(encoder))
    encoder.train()
    assert not torch.equal(residues(encoder), residues(encoder))


def test_ia3_scales_keys_values_and_the_inner_channels():
    """Equations 1 and 2 of the paper, by hand, on the linear maps of one layer."""
    encoder = frozen_encoder()
    for weight in map(encoder.get_parameter, build("ia3", encoder)):
        weight.data.uniform_(0.5, 2)
    plain, layer = frozen_encoder().layers[0], encoder.layers[0]
    x, y = (torch.randn(3, dim, dtype=torch.float64) for dim in (32, 128))
    for word in ("key", "value"):
        scale = encoder.get_parameter(f"layers.0.{word}.ia3_l.default").flatten()
        torch.testing.assert_close(layer.get_submodule(word)(x), plain.get_submodule(word)(x) * scale)
    scale = encoder.get_parameter("layers.0.contract.ia3_l.default").flatten()
    torch.testing.assert_close(layer.get_submodule("contract")(y), plain.get_submodule("contract")(y * scale))
    assert len(adapter_weights(encoder)) == 6


def test_lora_is_what_the_paper_says():
    """Equation 3 of the paper: h = W x + alpha / r B A x."""
    encoder = frozen_encoder()
    for weight in map(encoder.get_parameter, build("lora", encoder, rank=4, alpha=3)):
        weight.data.normal_()
    x = torch.randn(5, 32, dtype=torch.float64)
    a, b = (encoder.get_parameter(f"layers.1.query.lora_{letter}.default.weight") for letter in "AB")
    assert a.shape == (4, 32)
    expected = frozen_encoder().layers[1].get_submodule("query")(x) + 3 / 4 * x @ a.T @ b.T
    torch.testing.assert_close(encoder.layers[1].get_submodule("query")(x), expected)
    assert len(adapter_weights(encoder)) == 2 * 2 * len(EVERY_MAP.split(","))
