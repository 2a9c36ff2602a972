"""Weights from anywhere: every format's table is total, or the weights are refused."""

import argparse
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import esmtune
from esmtune.encoders import encoder_digest
from esmtune.esm2 import Tokens
from tests.conftest import TEN, in_new_process, tiny_encoder

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


def transformers_model(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.EsmConfig(
        vocab_size=33, position_embedding_type="rotary", token_dropout=True, pad_token_id=1, mask_token_id=32,
        layer_norm_eps=1e-5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SHAPE,
    )  # fmt: skip
    model = getattr(transformers, name)(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def same_outputs(encoder, model):
    tokens = Tokens.of([TEN[0]])
    with torch.inference_mode():
        states = model(tokens.ids[None], attention_mask=torch.ones_like(tokens.ids[None])).last_hidden_state
        torch.testing.assert_close(encoder(tokens).residues, states[0, 1:-1], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("EsmModel", {"contact_head", "pooler"}),
        ("EsmForMaskedLM", {"esm"}),
        ("EsmForSequenceClassification", {"classifier", "esm"}),
        ("EsmForTokenClassification", {"classifier", "esm"}),
    ],
)
def test_what_transformers_saves_today(tmp_path, name, left_out):
    """transformers 5 writes LayerNorm.gamma and beta, and one rotary buffer for all layers."""
    model = transformers_model(name)
    model.save_pretrained(tmp_path)
    assert any(key.endswith("LayerNorm.gamma") for key in load_file(tmp_path / "model.safetensors"))
    encoder, source = esmtune.load_encoder(tmp_path)
    same_outputs(encoder, getattr(model, "esm", model))
    assert {weight.split(".")[0] for weight in source.left_out} == left_out
    assert (encoder.lm_head is not None) == (name == "EsmForMaskedLM")
    if encoder.lm_head is not None:
        tokens = Tokens.of([TEN[0]])
        logits = model(tokens.ids[None], attention_mask=torch.ones_like(tokens.ids[None])).logits[0, 1:-1]
        torch.testing.assert_close(encoder.logits(tokens), logits, rtol=0, atol=2e-5)


def test_what_transformers_saved_before(tiny, tmp_path):
    """Rotary buffers a layer, as the official files have them, and position embeddings that nothing uses."""
    weights = load_file(tiny / "model.safetensors")
    assert sum("rotary_embeddings.inv_freq" in name for name in weights) == 2
    old = {f"esm.{name}": weight for name, weight in weights.items()}
    old["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, 32)
    old["esm.embeddings.position_ids"] = torch.arange(1026)[None]
    old["lm_head.decoder.weight"] = weights["embeddings.word_embeddings.weight"].clone()
    shutil.copy(tiny / "config.json", tmp_path)
    save_file(old, tmp_path / "model.safetensors")
    encoder, source = esmtune.load_encoder(tmp_path)
    assert encoder_digest(encoder) == encoder_digest(esmtune.load_encoder(tiny)[0]) == source.sha256
    save_file(old | {"lm_head.bias": torch.zeros(33)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"weight 'lm_head\..*' should be .* got nothing"):  # half an LM head
        esmtune.load_encoder(tmp_path)


@pytest.mark.parametrize("lm_head", [False, True])
def test_what_we_write_transformers_reads(tmp_path, lm_head):
    transformers = pytest.importorskip("transformers")
    ours = tiny_encoder(lm_head=lm_head)
    ours.frequency.mul_(1.01)  # stored, so neither side may compute its own
    esmtune.save_huggingface(ours, str(tmp_path / "f"), license="MIT")
    kind = transformers.EsmForMaskedLM if lm_head else transformers.EsmModel
    theirs = kind.from_pretrained(tmp_path / "f", **({} if lm_head else {"add_pooling_layer": False})).eval()
    same_outputs(ours, theirs.esm if lm_head else theirs)
    again, source = esmtune.load_encoder(tmp_path / "f")
    assert source.license == "MIT"
    assert source.sha256 == encoder_digest(ours)
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    theirs.save_pretrained(tmp_path / "g")
    assert esmtune.load_encoder(tmp_path / "g")[1].sha256 == source.sha256
    assert (tmp_path / "f" / "model.safetensors").stat().st_mode == (tmp_path / "f" / "config.json").stat().st_mode


def change(folder, tmp_path, edit=None, **config):
    """A copy of a folder with its weights or its configuration changed."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    if edit:
        edit(weights)
    save_file(weights, copy / "model.safetensors")
    content = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").write_text(json.dumps(content))
    return copy


def test_stored_frequencies_are_loaded(tiny, tmp_path):
    def edit(weights):
        for name in weights:
            if name.endswith("inv_freq"):
                weights[name] = torch.tensor([1.0, 0.5, 0.25, 0.125])

    encoder, _ = esmtune.load_encoder(change(tiny, tmp_path, edit))
    assert encoder.frequency.tolist() == [1.0, 0.5, 0.25, 0.125]
    default, _ = esmtune.load_encoder(tiny)
    assert not torch.allclose(encoder(Tokens.of(TEN)).residues, default(Tokens.of(TEN)).residues, atol=1e-3)


def test_absent_frequencies_are_computed(tiny, tmp_path):
    def edit(weights):
        for name in [name for name in weights if name.endswith("inv_freq")]:
            del weights[name]

    encoder, _ = esmtune.load_encoder(change(tiny, tmp_path, edit))
    torch.testing.assert_close(encoder.frequency, 10_000 ** (-torch.arange(0, 8, 2) / 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_are_read_as_float32(tiny, tmp_path, dtype):
    def edit(weights):
        weights.update({name: weight.to(dtype) for name, weight in weights.items()})

    encoder, _ = esmtune.load_encoder(change(tiny, tmp_path, edit))
    for name, weight in esmtune.load_encoder(tiny)[0].state_dict().items():
        assert encoder.state_dict()[name].dtype == torch.float32
        assert torch.equal(encoder.state_dict()[name], weight.to(dtype).float())


def put(name, *shape):
    return lambda weights: weights.update({name: torch.zeros(*shape)})


def put_all(name, value):
    """Fill whatever ends in a name."""
    return lambda weights: weights.update(
        {n: torch.full_like(w, value) for n, w in weights.items() if n.endswith(name)}
    )


def learn_positions(weights):
    for name in [name for name in weights if name.endswith("inv_freq")]:
        del weights[name]
    weights["embeddings.position_embeddings.weight"] = torch.zeros(1026, 32)


def one_frequency_differs(weights):
    weights["encoder.layer.1.attention.self.rotary_embeddings.inv_freq"] += 0.1


@pytest.mark.parametrize(
    ("edit", "config", "sentence"),
    [
        (put("encoder.layer.0.gate.weight", 3, 4), {}, r"weight 'encoder.layer.0.gate.weight' \(3, 4\) has no place"),
        (put("decoder.weight", 2), {}, r"weight 'decoder.weight' \(2,\) has no place in ESM-2"),
        (
            lambda w: w.pop("encoder.layer.1.output.dense.bias"),
            {},
            "'layers.1.contract.bias' should be .*, got nothing",
        ),
        (put("encoder.layer.0.output.dense.bias", 5), {}, r"'layers.0.contract.bias' should be \(32,\) .* got \(5,\)"),
        (one_frequency_differs, {}, "differs from the rotary frequencies of another layer"),
        (put("lm_head.decoder.weight", 33, 32), {}, "differs from the embedding, to which ESM-2 ties it"),
        (None, {"position_embedding_type": "absolute"}, "is 'absolute', but an ESM-2 has 'rotary': another model"),
        (None, {"emb_layer_norm_before": True}, "another model"),
        (None, {"model_type": "bert"}, "model_type is 'bert'"),
        (None, {"num_attention_heads": 5}, "an even number of channels for each head"),
        (None, {"num_attention_heads": 8}, "'frequency' should be"),
        (None, {"num_attention_heads": 0}, "an even number of channels for each head"),
        (None, {"num_attention_heads": "4"}, "num_attention_heads should be a whole number, got '4'"),
        (None, {"is_decoder": True}, "is_decoder is True"),
        # What transformers takes for written where it is not, as in a file that somebody wrote by hand.
        (None, {"position_embedding_type": None}, "position_embedding_type is 'absolute'"),
        (None, {"token_dropout": None}, "token_dropout is False"),
        (None, {"layer_norm_eps": None}, "layer_norm_eps is 1e-12"),
        (learn_positions, {}, "position_embeddings.weight' holds learned positions, but an ESM-2 has rotary"),
        (put_all("0.output.dense.weight", float("nan")), {}, "'layers.0.contract.weight' holds NaN or infinity"),
        (put_all("inv_freq", float("inf")), {}, "'frequency' holds NaN or infinity"),
        (put("esm.embeddings.word_embeddings.weight", 33, 32), {}, "there twice, under two names"),
        (put("encoder.layer.0.LayerNorm.gamma", 32), {}, "there twice, under two names"),
        (put("encoder.layer.{}.attention.self.query.weight", 2), {}, r"layer\.{}\..* has no place in ESM-2"),
        (put("encoder.layer.3000000.output.dense.bias", 32), {}, "'layers.2.*got nothing"),
        (put("embeddings.word_embeddings.weight", ()), {}, r"should be \(33, channels\), got \(\)"),
        (put("embeddings.word_embeddings.weight", 64, 32), {}, r"got \(64, 32\)"),
    ],
)
def test_what_is_no_esm2_is_refused(tiny, tmp_path, edit, config, sentence):
    with pytest.raises(ValueError, match=sentence):
        esmtune.load_encoder(change(tiny, tmp_path, edit, **config))


@pytest.mark.parametrize(
    "config", [{"hidden_dropout_prob": 0.1}, {"max_position_embeddings": 4098}, {"torch_dtype": "f"}]
)
def test_what_changes_no_output_is_accepted(tiny, tmp_path, config):
    assert esmtune.load_encoder(change(tiny, tmp_path, **config))[1].sha256 == esmtune.load_encoder(tiny)[1].sha256


def test_an_older_esm_in_a_file_of_its_own_is_refused(tiny, tmp_path):
    """ESM-1v and ESM-2 differ by their positions alone, and a bare file has no config.json that says so."""
    weights = load_file(tiny / "model.safetensors")
    learn_positions(weights)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="learned positions"):
        esmtune.load_encoder(tmp_path / "pytorch_model.bin")
    fairseq = {"encoder.sentence_encoder.embed_tokens.weight": torch.zeros(33, 32)}
    fairseq["encoder.sentence_encoder.embed_positions.weight"] = torch.zeros(1026, 32)
    torch.save({"args": argparse.Namespace(arch="roberta_large"), "model": fairseq}, tmp_path / "esm1b.pt")
    with pytest.raises(ValueError, match=r"embed_positions.weight' \(1026, 32\) has no place in ESM-2"):
        esmtune.load_encoder(tmp_path / "esm1b.pt")


def test_loading_leaves_no_trace(tiny, tmp_path):
    """No random number is drawn, and what is loaded stays when its file is written over."""
    folder = change(tiny, tmp_path)
    before = torch.get_rng_state()
    encoder, source = esmtune.load_encoder(folder)
    assert torch.equal(torch.get_rng_state(), before)
    with (folder / "model.safetensors").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(bytes(size))
    assert encoder_digest(encoder) == source.sha256
    esmtune.save_huggingface(encoder, folder)
    assert esmtune.load_encoder(folder)[1].sha256 == source.sha256
    assert not encoder.training
    assert all(weight.requires_grad for weight in encoder.parameters())


def test_heads_are_counted_by_the_frequencies(tiny):
    """A bare file needs no config.json; without frequencies, only the official sizes are known."""
    encoder, _ = esmtune.load_encoder(tiny / "model.safetensors")
    assert encoder.config.num_heads == 4


def test_sizes_that_cannot_be_told_are_not_guessed(tiny, tmp_path):
    weights = {n: w for n, w in load_file(tiny / "model.safetensors").items() if not n.endswith("inv_freq")}
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="without rotary frequencies the number of heads cannot be told"):
        esmtune.load_encoder(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"weight_map": {"a": "../../model.safetensors"}}, "names '../../model.safetensors', which is not in"),
        ({"weight_map": {"a": "/etc/hostname"}}, "names '/etc/hostname', which is not in"),
        ({"weight_map": {"a": ".."}}, "names '..', which is not in"),
        ({"weight_map": {"a": 1}}, "names 1, which is not in"),
        ({"weight_map": ["a"]}, "names no files"),
        ({}, "names no files"),
        ([], "holds no JSON object"),
    ],
)
def test_a_strange_index(tiny, tmp_path, index, sentence):
    folder = change(tiny, tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert esmtune.load_encoder(folder)[0].config.num_layers == 2  # the whole file goes first, as in transformers
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=sentence):
        esmtune.load_encoder(folder)


def test_a_weight_in_two_shards(tiny, tmp_path):
    folder = change(tiny, tmp_path)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"pooler.dense.bias": torch.zeros(2), "embeddings.word_embeddings.weight": torch.zeros(33, 32)},
              folder / "b.safetensors")  # fmt: skip
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"'embeddings\.word_embeddings\.weight', which another file holds too"):
        esmtune.load_encoder(folder)


def test_shards(tiny, tmp_path):
    weights = load_file(tiny / "model.safetensors")
    shutil.copy(tiny / "config.json", tmp_path)
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert esmtune.load_encoder(tmp_path)[1].sha256 == esmtune.load_encoder(tiny)[1].sha256
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="The download is incomplete"):
        esmtune.load_encoder(tmp_path)
    index["weight_map"][names[0]] = os.path.relpath(tiny / "model.safetensors", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is not in"):  # a path that leads out of the folder
        esmtune.load_encoder(tmp_path)


# --- Pickles --------------------------------------------------------------------------------------


def official(model, prefix="encoder.sentence_encoder."):
    """A checkpoint as fair-esm publishes them: settings in a Namespace, names with prefixes."""
    lm = {"lm_head.weight", "lm_head.bias", "lm_head.dense.weight", "lm_head.dense.bias"}
    lm |= {"lm_head.layer_norm.weight", "lm_head.layer_norm.bias"}
    weights = {("encoder." if n in lm else prefix) + n: w for n, w in model.state_dict().items() if "contact" not in n}
    settings = argparse.Namespace(encoder_layers=2, encoder_embed_dim=32, encoder_attention_heads=4, token_dropout=True)
    return {"cfg": {"model": settings}, "model": weights}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("with_contacts", [False, True])
def test_an_official_pt(tmp_path, with_contacts, dtype):
    """The larger ones are published in float16. With the contact regression beside it, fair-esm itself reads ours."""
    esm = pytest.importorskip("esm")
    torch.manual_seed(0)
    theirs = esm.ESM2(num_layers=2, embed_dim=32, attention_heads=4).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    theirs.to(dtype).float()
    file = tmp_path / "esm2_t2_tiny.pt"
    content = official(theirs)
    content["model"] = {name: weight.to(dtype) for name, weight in content["model"].items()}
    torch.save(content, file)
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):  # what makes official files special
        torch.load(file, weights_only=True)
    if with_contacts:  # lies beside the weights, and is not needed
        contacts = {f"contact_head.regression.{n}": w for n, w in theirs.contact_head.regression.state_dict().items()}
        torch.save({"model": contacts}, tmp_path / "esm2_t2_tiny-contact-regression.pt")
        with torch.serialization.safe_globals([argparse.Namespace]):
            theirs = esm.pretrained.load_model_and_alphabet(str(file))[0].eval()
    encoder, source = esmtune.load_encoder(file)
    assert (source.left_out, source.license, source.is_random) == ((), None, False)
    tokens = Tokens.of([TEN[0]])
    with torch.inference_mode():
        out = theirs(tokens.ids[None], repr_layers=[2])
        torch.testing.assert_close(encoder(tokens).residues, out["representations"][2][0, 1:-1], rtol=0, atol=2e-5)
        torch.testing.assert_close(encoder.logits(tokens), out["logits"][0, 1:-1], rtol=0, atol=5e-5)


def test_a_state_dict_and_a_single_safetensors_file(tiny, tmp_path):
    weights = load_file(tiny / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    for file in (tmp_path / "pytorch_model.bin", tiny / "model.safetensors"):
        assert esmtune.load_encoder(file)[1].sha256 == esmtune.load_encoder(tiny)[1].sha256


def test_a_pickle_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    (tmp_path / "w.pt").write_bytes(pickle.dumps({"model": Hostile()}, protocol=2))
    with pytest.raises(ValueError, match="weights_only=True, which takes tensors and runs no code"):
        esmtune.load_encoder(tmp_path / "w.pt")
    torch.save({"model": Hostile()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="runs no code"):
        esmtune.load_encoder(tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"it holds \w+\.mkdir") as refused:
        esmtune.load_encoder(tmp_path / "w.pt")
    assert "False" not in str(refused.value)  # torch's own words advise to set weights_only to it
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [([1, 2], "holds no table of weights"), ({"a": "b"}, "holds no table"), ({}, "no known format of ESM-2 weights")],
)
def test_a_pickle_of_something_else(tmp_path, content, sentence):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=sentence):
        esmtune.load_encoder(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "w.pt"])
def test_a_truncated_file(tiny, tmp_path, name):
    folder = change(tiny, tmp_path)
    if name == "w.pt":
        torch.save(load_file(tiny / "model.safetensors"), folder / name)
    file = folder / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be read as"):
        esmtune.load_encoder(file if name == "w.pt" else folder)


def test_a_folder_without_weights(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        esmtune.load_encoder(tmp_path)
    shutil.copy(tiny / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"holds no model\.safetensors\.$"):
        esmtune.load_encoder(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"name it itself: --encoder .*pytorch_model\.bin"):
        esmtune.load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        esmtune.load_encoder(tmp_path)


# --- Names ----------------------------------------------------------------------------------------


def cached(tiny, cache):
    """Hugging Face's cache with one model in it, laid out as huggingface_hub does."""
    folder = cache / "models--facebook--esm2_t6_8M_UR50D"
    shutil.copytree(tiny, folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


# huggingface_hub reads its environment when it is imported, so each needs a process. Port 9 discards: no network.
NO_NETWORK = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}


def test_a_cached_name_needs_no_network(tiny, tmp_path):
    cached(tiny, tmp_path)
    code = """if True:
        import esmtune
        for name in "esm2_t6_8M_UR50D", "facebook/esm2_t6_8M_UR50D":
            source = esmtune.load_encoder(name)[1]
            print(source.name, source.license, source.sha256)
    """
    answer = in_new_process("-c", code, HF_HUB_CACHE=str(tmp_path), **NO_NETWORK)
    expected = ["esm2_t6_8M_UR50D", "MIT", esmtune.load_encoder(tiny)[1].sha256]
    assert [line.split() for line in answer.out.splitlines()] == [expected, expected], answer.err


def test_a_name_that_cannot_be_had_says_what_was_tried(tiny, tmp_path):
    """Not in the cache, half in the cache, and mistyped: never random weights, and nothing is written."""
    (cached(tiny, tmp_path) / "model.safetensors").unlink()
    code = """if True:
        import esmtune
        for name in "esm2_t12_35M_UR50D", "esm2_t6_8M_UR50D", "facebook/esm2_t6_8M_UR50", "somebody/something":
            try:
                print(esmtune.load_encoder(name))
            except ValueError as error:
                print(error)
    """
    answer = in_new_process("-c", code, HF_HUB_CACHE=str(tmp_path), **NO_NETWORK)
    absent, half, mistyped, strange = answer.out.splitlines()
    for part in (
        "the encoder 'facebook/esm2_t12_35M_UR50D' cannot be had", "Tried: a file or folder of that name", "cache",
        "downloading it", "To get it offline", "hf download facebook/esm2_t12_35M_UR50D", "random:esm2_t12_35M_UR50D",
    ):  # fmt: skip
        assert part in absent
    assert "the encoder 'facebook/esm2_t6_8M_UR50D' cannot be had" in half
    assert "Did you mean 'esm2_t6_8M_UR50D'?" in mistyped
    assert "the encoder 'somebody/something' cannot be had" in strange
    assert "random:" not in mistyped + strange  # there is no architecture to draw them for
    assert list(tmp_path.glob("**/*.safetensors")) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("esm2_t6_8M_UR50", "Did you mean 'esm2_t6_8M_UR50D'"),
        ("./nowhere/esm2", "it is no file, no folder and no name of an ESM-2"),
        ("random:esm2_8M", "random weights need the name of an ESM-2"),
        ("random:", "random weights need the name"),
    ],
)
def test_a_wrong_name_is_no_random_encoder(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        esmtune.load_encoder(name)


def test_random_weights_say_so():
    encoder, source = esmtune.load_encoder("random:facebook/esm2_t6_8M_UR50D")
    assert source.name == "random:esm2_t6_8M_UR50D"
    assert source.is_random
    assert source.license is None
    assert encoder.config == esmtune.esm2.OFFICIAL["esm2_t6_8M_UR50D"]
    # As transformers initializes: matrices with a spread of .02, norms at one, biases and <pad> wherever they are.
    assert encoder.layers[0].query.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.norm.weight.unique().tolist() == [1.0]
