"""Adapters: PEFT and transformers are the oracle, for what is computed and for what is in the files."""

import copy
import json
import pickle
import shutil

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import esmtune
from esmtune.adapter_files import load_adapter, save_adapter
from esmtune.adapters import adapter_weights, inject, is_adapted, linear_maps, merge
from esmtune.encoders import load_encoder
from esmtune.esm2 import ESM2, ESM2Config, Tokens
from esmtune.tuning import tuning
from tests.conftest import TEN, in_new_process, tiny_encoder

transformers = pytest.importorskip("transformers")

SOME = {"lora": {"rank": 4, "rslora": True, "targets": "value, contract"}, "ia3": {"targets": "out,expand,contract"}}
KINDS = [{"name": name} for name in tuning if "targets" in tuning.options(name)]
KINDS += [{"name": name, **options} for name, options in SOME.items()]
every_kind = pytest.mark.parametrize("spec", KINDS, ids=lambda spec: "-".join(map(str, spec.values())))
TOKENS = Tokens.of(TEN[:3])


def adapted(spec, encoder=None, scale=0.1) -> ESM2:
    """An encoder with adapters that have learned something, each weight of them."""
    encoder = tiny_encoder().requires_grad_(False) if encoder is None else encoder
    torch.manual_seed(0)
    for name in tuning.build(spec, encoder):
        encoder.get_parameter(name).data.add_(torch.randn(encoder.get_parameter(name).shape), alpha=scale)
    return encoder.eval()


@torch.inference_mode()
def residues(encoder, tokens=TOKENS):
    return encoder(tokens).residues


@torch.inference_mode()
def their_residues(model):
    """What transformers' model says of the residues, one sequence at a time."""
    rows = [model(ids[None]).last_hidden_state[0, 1:-1] for ids in TOKENS.ids.split(TOKENS.lengths)]
    return torch.cat(rows)


def their_encoder(folder):
    return transformers.EsmModel.from_pretrained(folder, add_pooling_layer=False).eval()


@every_kind
def test_peft_puts_our_file_on_their_encoder(spec, tiny, tmp_path):
    encoder = adapted(spec)
    save_adapter(encoder, tmp_path, base="some/esm2")
    model = peft.PeftModel.from_pretrained(their_encoder(tiny), tmp_path).eval()
    expected = residues(encoder)
    assert (expected - residues(tiny_encoder())).abs().max() > 1e-3
    torch.testing.assert_close(their_residues(model), expected, rtol=0, atol=1e-5)
    layers = [module for module in model.modules() if hasattr(module, "base_layer")]
    assert len(layers) == sum(hasattr(module, "base_layer") for module in encoder.modules())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/esm2"


@every_kind
def test_their_file_is_read_as_peft_reads_it(spec, tiny, tmp_path):
    """Written by PEFT itself, from transformers' encoder with our adapters on it."""
    save_adapter(adapted(spec), tmp_path / "ours")
    model = peft.PeftModel.from_pretrained(their_encoder(tiny), tmp_path / "ours", is_trainable=True)
    model.save_pretrained(tmp_path / "theirs")
    encoder = tiny_encoder()
    assert load_adapter(encoder, tmp_path / "theirs") == ()
    torch.testing.assert_close(residues(encoder), their_residues(model.eval()), rtol=0, atol=1e-5)
    ours, theirs = (load_file(tmp_path / f"{who}/adapter_model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@every_kind
def test_a_file_read_and_written_is_the_same_file(spec, tmp_path):
    encoder, again = adapted(spec), tiny_encoder()
    save_adapter(encoder, tmp_path / "a", base="x")
    state = torch.random.get_rng_state()
    load_adapter(again, tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(residues(again), residues(encoder))
    assert not any(weight.requires_grad for weight in again.parameters())
    save_adapter(again, tmp_path / "b", base="x")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@every_kind
def test_merged_equals_unmerged(spec, dtype, tolerance):
    plain, encoder = tiny_encoder(), adapted(spec).to(dtype)
    before = residues(encoder)
    assert is_adapted(encoder)
    merge(encoder)
    assert not is_adapted(encoder)
    assert list(encoder.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in encoder.modules()] == [type(module) for module in plain.modules()]
    torch.testing.assert_close(residues(encoder), before, rtol=0, atol=tolerance)
    merge(encoder)
    assert tuning.build(spec, encoder)  # what was merged can be tuned anew


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_kind
def test_merging_rounds_each_weight_once(spec, dtype):
    """The encoder is merged by PEFT itself, in float64, and rounded."""
    encoder = adapted(spec).to(dtype)
    exact = copy.deepcopy(encoder).double()
    for path in linear_maps(exact):
        if hasattr(adapter := exact.get_submodule(path), "base_layer"):
            adapter.merge()
            exact.set_submodule(path, adapter.get_base_layer())
    merge(encoder)
    for name, weight in exact.named_parameters():
        assert torch.equal(encoder.get_parameter(name), weight.to(dtype)), name


@every_kind
def test_copies_compute_the_same(spec):
    encoder = adapted(spec)
    expected = residues(encoder)
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(residues(copied), expected)
        assert adapter_weights(copied).keys() == adapter_weights(encoder).keys()
        merge(copied)
    assert torch.equal(residues(encoder), expected)


@every_kind
def test_adapter_weights_are_those_that_a_plain_encoder_lacks(spec):
    encoder = adapted(spec)
    ours, plain = adapter_weights(encoder), tiny_encoder().state_dict()
    rest = {name.replace(".base_layer", ""): w for name, w in encoder.state_dict().items() if name not in ours}
    assert rest.keys() == plain.keys()
    assert all(torch.equal(rest[name], plain[name]) for name in plain)
    assert ours
    assert not adapter_weights(tiny_encoder())


@every_kind
def test_bfloat16_autocast_trains(spec):
    encoder = adapted(spec).train()
    moving = [encoder.get_parameter(name).requires_grad_() for name in adapter_weights(encoder)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = encoder(TOKENS).residues
    torch.manual_seed(1)
    (x.float() * torch.randn(x.shape)).sum().backward()
    assert all(w.grad is not None and w.grad.dtype == torch.float32 and w.grad.isfinite().all() for w in moving)
    assert 0 < (x.detach().float() - residues(encoder.eval())).abs().max() < 0.05  # 8 bits, some layers


def test_many_linear_maps_are_saved_all(tmp_path):
    """PEFT shortens long lists of targets, behind the back of who wrote them."""
    encoder = ESM2(ESM2Config(num_layers=6, embed_dim=32, num_heads=4))
    tuning.build({"name": "lora", "targets": "query,key,value,out,contract"}, encoder)
    save_adapter(encoder, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(written) == 30
    assert "encoder.layer.5.output.dense" in written
    again = ESM2(encoder.config)
    load_adapter(again, tmp_path)
    assert again.state_dict().keys() == encoder.state_dict().keys()


def plain_peft(tiny, folder, model_class=None, **settings):
    """An adapter as anybody makes one, and their model with it."""
    model = model_class or transformers.EsmModel
    torch.manual_seed(0)
    model = peft.get_peft_model(model.from_pretrained(tiny), peft.LoraConfig(init_lora_weights=False, **settings))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query", "value"]},
        {"target_modules": ["query", "attention.output.dense", "intermediate.dense"], "use_dora": True, "r": 2},
        {"target_modules": ["key"], "layers_to_transform": [1], "lora_alpha": 3, "use_rslora": True},
        {"target_modules": r".*layer\.\d+\.output\.dense", "lora_bias": True, "lora_dropout": 0.5},
        {"target_modules": ["query", "key"], "exclude_modules": ["encoder.layer.0.attention.self.key"]},
    ],
    ids=str,
)
def test_any_lora_of_pefts_is_read(settings, tiny, tmp_path):
    model = plain_peft(tiny, tmp_path, **settings)
    encoder = tiny_encoder()
    assert load_adapter(encoder, tmp_path) == ()
    torch.testing.assert_close(residues(encoder), their_residues(model), rtol=0, atol=1e-5)


def test_of_a_classifier_of_theirs_the_encoder_is_read(tiny, tmp_path):
    model = plain_peft(
        tiny,
        tmp_path,
        transformers.EsmForSequenceClassification,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
    )
    encoder = tiny_encoder()
    left_out = load_adapter(encoder, tmp_path)
    assert {name.removeprefix("base_model.model.").split(".")[0] for name in left_out} == {"classifier"}
    torch.testing.assert_close(residues(encoder), their_residues(model.base_model.model.esm), rtol=0, atol=1e-5)


def rewrite(folder, weights=None, **config):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if weights is not None:
        held = load_file(folder / "adapter_model.safetensors")
        save_file(weights(held), folder / "adapter_model.safetensors")


def first(held):
    return next(iter(held))


DAMAGES = {
    "config gone": (lambda f: (f / "adapter_config.json").unlink(), "is no adapter"),
    "weights gone": (lambda f: (f / "adapter_model.safetensors").unlink(), "is no adapter"),
    "pickle": (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "is a pickle"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text('{"r": '), "cannot be read as JSON"),
    "no UTF-8": (lambda f: (f / "adapter_config.json").write_bytes(b"\xff\xfe{"), "cannot be read as JSON"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[1]"), "peft_type is None"),
    "unknown kind": (lambda f: rewrite(f, peft_type="PREFIX_TUNING"), "peft_type is 'PREFIX_TUNING'"),
    "kind is a list": (lambda f: rewrite(f, peft_type=["LORA"]), "peft_type is"),
    "cut short": (
        lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:-9]),
        "cannot be read as safetensors",
    ),
    "another rank": (lambda f: rewrite(f, r=5), r"should be \(5, 32\), got \(8, 32\)"),
    "rank is text": (lambda f: rewrite(f, r="many"), "does not fit"),
    "rank is 0": (lambda f: rewrite(f, r=0), "does not fit"),
    "setting unknown": (lambda f: rewrite(f, use_magic=True), "use_magic is True, which is not known"),
    "biases too": (lambda f: rewrite(f, bias="all"), "bias is 'all'"),
    "changes the encoder": (lambda f: rewrite(f, init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "ranks by name": (lambda f: rewrite(f, rank_pattern={"query": 3}), "rank_pattern is"),
    "bad pattern": (lambda f: rewrite(f, target_modules="(query"), "no configuration of PEFT's"),
    "targets nothing": (lambda f: rewrite(f, target_modules=["q_proj"]), "does not fit"),
    "targets more": (
        lambda f: rewrite(f, target_modules=["query", "value", "key"]),
        r"layers\.0\.key\.lora_A\.weight' should be \(8, 32\), got nothing",
    ),
    "targets less": (lambda f: rewrite(f, target_modules=["query"]), r"value\.lora_A\.weight' should be nothing, got"),
    "weight gone": (
        lambda f: rewrite(f, lambda held: {n: w for n, w in held.items() if n != first(held)}),
        "got nothing",
    ),
    "wrong shape": (lambda f: rewrite(f, lambda held: held | {first(held): torch.zeros(8, 31)}), r"got \(8, 31\)"),
    "NaN": (lambda f: rewrite(f, lambda held: {n: w * torch.nan for n, w in held.items()}), "holds NaN"),
    "foreign": (
        lambda f: rewrite(f, lambda held: {n.replace("attention.self", "attn"): w for n, w in held.items()}),
        "has no place beside a linear map of this encoder, which has 2 layers",
    ),
    "a third layer": (
        lambda f: rewrite(f, lambda held: {n.replace("layer.1", "layer.2"): w for n, w in held.items()}),
        "has no place",
    ),
    "head alone": (
        lambda f: rewrite(f, lambda held: {"base_model.model.classifier.weight": torch.zeros(2)}),
        "no weights for an ESM-2",
    ),
    "empty": (lambda f: rewrite(f, lambda held: {}), "no weights for an ESM-2"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(adapted({"name": "lora", "targets": "query,value"}), folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_folder_is_refused_and_nothing_changes(damage, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    act, sentence = DAMAGES[damage]
    act(folder)
    encoder = tiny_encoder()
    before = residues(encoder)
    with pytest.raises(ValueError, match=sentence) as error:
        load_adapter(encoder, folder)
    assert str(folder) in str(error.value)
    assert not is_adapted(encoder)
    assert list(encoder.state_dict()) == list(tiny_encoder().state_dict())
    assert torch.equal(residues(encoder), before)


def test_an_adapter_for_another_size_is_refused(whole):
    encoder = ESM2(ESM2Config(num_layers=2, embed_dim=64, num_heads=4))
    with pytest.raises(ValueError, match=r"should be \(8, 64\), got \(8, 32\)"):
        load_adapter(encoder, whole)


def test_a_second_adapter_is_refused(whole):
    encoder = adapted({"name": "ia3"})
    for act in (lambda: load_adapter(encoder, whole), lambda: inject(encoder, "LORA", "query", r=2)):
        with pytest.raises(ValueError, match="adapters already: merge them first"):
            act()


def test_broken_adapters_are_not_merged():
    encoder = adapted({"name": "lora"})
    next(iter(adapter_weights(encoder).values())).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"'layers.0.query.lora_A.default.weight' holds NaN"):
        merge(encoder)
    assert is_adapted(encoder)


@pytest.mark.parametrize("targets", ["quer", "dense", "", "query,,value", "layers", "attention_norm"])
def test_a_target_that_matches_nothing_is_an_error_that_names_what_there_is(targets):
    encoder = tiny_encoder(lm_head=True)
    with pytest.raises(ValueError, match="There are: query, key, value, out, expand, contract"):
        inject(encoder, "LORA", targets)
    assert not is_adapted(encoder)


def test_adapters_go_where_the_targets_say():
    encoder = tiny_encoder(lm_head=True)
    inject(encoder, "LORA", "out,expand")
    paths = {".".join(name.split(".")[:3]) for name in adapter_weights(encoder)}
    assert paths == {"layers.0.out", "layers.0.expand", "layers.1.out", "layers.1.expand"}


def test_transformers_have_every_linear_map_under_the_name_we_say(tiny):
    theirs = dict(their_encoder(tiny).named_modules())
    ours = tiny_encoder()
    assert len(linear_maps(ours)) == 12
    for path, name in linear_maps(ours).items():
        assert torch.equal(theirs[name].weight, ours.get_submodule(path).weight)


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_adapters_on_real_weights_agree_with_peft(name, real_weights, tmp_path):
    encoder = adapted({"name": name}, load_encoder(real_weights)[0].requires_grad_(False), 0.01)
    save_adapter(encoder, tmp_path)
    model = peft.PeftModel.from_pretrained(their_encoder(real_weights), tmp_path).eval()
    torch.testing.assert_close(their_residues(model), residues(encoder), rtol=0, atol=2e-5)  # as without adapters
    # That is rounding of float32: in float64 they are the same.
    torch.testing.assert_close(their_residues(model.double()), residues(encoder.double()), rtol=0, atol=1e-6)


def test_dora_and_rslora_are_not_lora():
    """PEFT's own flags arrive: with alpha 16 and rank 4, rslora scales by 8 where LoRA scales by 4."""
    outputs = [residues(adapted({"name": "lora", "rank": 4, "rslora": flag})) for flag in (False, True)]
    assert not torch.equal(*outputs)
    doubled = residues(adapted({"name": "lora", "rank": 4, "alpha": 32}))
    torch.testing.assert_close(outputs[1], doubled, rtol=0, atol=1e-6)
    assert any("magnitude" in name for name in adapter_weights(adapted({"name": "dora"})))


def test_peft_is_imported_when_it_is_needed():
    code = "import esmtune.tuning, sys; assert not {'peft', 'transformers', 'accelerate'} & set(sys.modules)"
    answer = in_new_process("-c", code)
    assert answer.code == 0, answer.err


def test_adapters_on_an_encoder_that_was_tuned_before_name_no_base_and_its_embeddings_are_its_own(tiny, tmp_path):
    """PEFT would put them on the encoder as it was, and be wrong without a word."""
    rows = [(sequence, place / 7) for place, sequence in enumerate(TEN)]
    options = {"tuning": "lora", "max_steps": 1, "folds": 1, "split": "random", "encoder_learning_rate": 0.01}
    esmtune.train(rows, encoder=str(tiny), out=tmp_path / "first", **options)
    esmtune.train(rows, encoder=str(tmp_path / "first"), out=tmp_path / "second", **options)
    bases = [
        json.loads((tmp_path / run / "predictor/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
        for run in ("first", "second")
    ]
    assert bases == [str(tiny), None]
    plain, tuned = (esmtune.embed(encoder, list(TEN), cache="none") for encoder in (tiny, tmp_path / "second"))
    assert not np.allclose(plain.vectors, tuned.vectors, atol=1e-3)
    assert plain.about["encoder"] == str(tiny)
    assert tuned.about["encoder"] == str(tmp_path / "second")
    assert plain.about["sha256"] != tuned.about["sha256"]
