"""The encoder against two independent ones: fair-esm and transformers."""

import pytest
import torch
from torch import nn

import esmtune
from esmtune.alphabet import MASK, PAD, SYMBOLS
from esmtune.checkpoints import checkpoint_format
from esmtune.esm2 import ESM2, OFFICIAL, ESM2Config, Tokens
from tests.conftest import TEN, tiny_encoder

SHAPE = ESM2Config(num_layers=3, embed_dim=32, num_heads=4)
# Each of the 33 symbols stands once in the middle of a sequence, and lengths differ.
SEQUENCES = [f"MKT{symbol}VRQ" + "GA" * (number % 4) for number, symbol in enumerate(SYMBOLS)]


def fair_esm(shape):
    esm = pytest.importorskip("esm")
    model = esm.ESM2(num_layers=shape.num_layers, embed_dim=shape.embed_dim, attention_heads=shape.num_heads)

    def run(ids):
        out = model(ids, repr_layers=range(shape.num_layers + 1))
        return [out["representations"][layer] for layer in range(shape.num_layers + 1)], out["logits"]

    return model, run


def transformers_esm(shape):
    transformers = pytest.importorskip("transformers")
    config = transformers.EsmConfig(
        vocab_size=33, hidden_size=shape.embed_dim, num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads, intermediate_size=4 * shape.embed_dim, position_embedding_type="rotary",
        token_dropout=True, pad_token_id=PAD, mask_token_id=MASK, layer_norm_eps=1e-5, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.EsmForMaskedLM(config)

    def run(ids):
        out = model(ids, attention_mask=(ids != PAD).long(), output_hidden_states=True)
        return list(out.hidden_states), out.logits

    return model, run


@pytest.fixture(params=["fair-esm", "huggingface"])
def pair(request):
    """An oracle with random weights in float64, and our encoder with the same."""
    torch.manual_seed(0)
    theirs, run = (fair_esm if request.param == "fair-esm" else transformers_esm)(SHAPE)
    theirs.double().eval()
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.2)
    if request.param == "huggingface":
        nn.init.zeros_(theirs.esm.embeddings.word_embeddings.weight[PAD : PAD + 1])
    weights = theirs.state_dict()
    names, _ = checkpoint_format[request.param]().convert(weights)
    ours = ESM2(SHAPE, lm_head=True).double().eval()
    ours.load_state_dict({"frequency": ours.frequency, **{name: weights[named] for name, named in names.items()}})
    return ours, run


def test_every_layer_and_the_lm_head_agree_for_every_token(pair):
    ours, run = pair
    tokens = Tokens.of(SEQUENCES)
    assert set(tokens.ids.tolist()) == set(range(33))
    padded = nn.utils.rnn.pad_sequence(tokens.ids.split(tokens.lengths), batch_first=True, padding_value=PAD)
    layers = range(SHAPE.num_layers + 1)
    with torch.inference_mode():
        theirs, their_logits = run(padded)
        got, logits = ours.representations(tokens, layers), ours.logits(tokens)
        for layer in layers:
            compare(got[layer].residues, theirs[layer], tokens)
            torch.testing.assert_close(got[layer].cls, theirs[layer][:, 0], rtol=0, atol=1e-6)
        compare(logits, their_logits, tokens)
        back = ours.representations(tokens, [-1, -SHAPE.num_layers - 1])
        assert torch.equal(back[0].residues, got[-1].residues)
        assert torch.equal(back[1].residues, got[0].residues)


def test_bfloat16_stays_near_the_oracles(pair):
    """In every layer, for every symbol: by 2 % of a vector's length (.6 % are seen; one rounding is .4 %)."""
    ours, run = pair
    tokens = Tokens.of(SEQUENCES)
    padded = nn.utils.rnn.pad_sequence(tokens.ids.split(tokens.lengths), batch_first=True, padding_value=PAD)
    layers = range(SHAPE.num_layers + 1)
    with torch.inference_mode():
        theirs, _ = run(padded)
        with torch.autocast("cpu", torch.bfloat16):
            got = ours.float().representations(tokens, layers)
    for layer in layers:
        rows = got[layer].residues.double().split(got[layer].lengths)
        for row, their_row, ids in zip(rows, theirs[layer], tokens.ids.split(tokens.lengths), strict=True):
            present = ids[1:-1] != PAD
            wanted = their_row[1 : len(row) + 1]
            off = (row - wanted)[present].norm(dim=1)
            assert off.max() <= 0.02 * wanted[present].norm(dim=1).mean()
            assert layer == 0 or off.max() > 1e-4  # in another precision indeed


def compare(ours, theirs, tokens):
    """Equal to 1e-6 at every residue but <pad>, where the oracles hold what nobody reads."""
    rows = ours.split([n - 2 for n in tokens.lengths])
    for row, their_row, ids in zip(rows, theirs, tokens.ids.split(tokens.lengths), strict=True):
        present = ids[1:-1] != PAD
        torch.testing.assert_close(row[present], their_row[1 : len(row) + 1][present], rtol=0, atol=1e-6)


def test_real_weights_agree_with_transformers(real_weights):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.EsmModel.from_pretrained(real_weights, add_pooling_layer=False).eval()
    ours, source = esmtune.load_encoder(real_weights)
    assert source.left_out == ("contact_head.regression.bias", "contact_head.regression.weight")
    sequences = [*TEN, "MKTVRQERLK" * 104, "MK<mask>VRQ", "XBUZO"]
    tokens = Tokens.of(sequences)
    padded = nn.utils.rnn.pad_sequence(tokens.ids.split(tokens.lengths), batch_first=True, padding_value=PAD)
    with torch.inference_mode():
        expected = theirs(padded, attention_mask=(padded != PAD).long()).last_hidden_state
        got = ours(tokens)
    for row, residues in zip(expected, got.residues.split(got.lengths), strict=True):
        torch.testing.assert_close(residues, row[1 : len(residues) + 1], rtol=0, atol=2e-5)


def test_official_sizes_have_their_numbers_of_weights():
    """Embedding, layers, norm and LM head; bionemo's counts, computed from the architecture."""
    expected = [7_512_353, 33_501_153, 148_139_553, 651_042_593, 2_839_004_193, 15_129_098_273]
    with torch.device("meta"):
        counts = [sum(w.numel() for w in ESM2(shape, lm_head=True).parameters()) for shape in OFFICIAL.values()]
    assert counts == expected


def test_golden_tokens():
    text = "MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVIVQDIAYLRSLGYNIVATPRGYVLAGG"
    golden = (
        "20 15 11 7 10 16 9 10 4 15 8 12 7 10 12 4 9 10 8 15 9 14 7 8 6 5 16 4 5 9 9 4 8 7 8 10 16 7 12 7 16 13 12 5 "
        "19 4 10 8 4 6 19 17 12 7 5 11 14 10 6 19 7 4 5 6 6"
    )
    assert Tokens.of([text]).ids.tolist() == [0, *map(int, golden.split()), 2]
    assert Tokens.of(["KA<mask>ISQ", ""]).ids.tolist() == [0, 15, 5, 32, 12, 8, 16, 2, 0, 2]
    assert Tokens.of(["<cls><pad><eos><unk><null_1>.-"]).ids.tolist() == [0, 0, 1, 2, 3, 31, 29, 30, 2]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
def test_company_changes_nothing(dtype, bound):
    encoder = tiny_encoder().to(dtype)
    with torch.inference_mode():
        alone = torch.cat([encoder(Tokens.of([s])).residues for s in TEN])
        for order in (range(10), reversed(range(10))):
            order = list(order)
            x = encoder(Tokens.of([TEN[i] for i in order]))
            rows = dict(zip(order, x.residues.split(x.lengths), strict=True))
            together = torch.cat([rows[i] for i in range(10)])
            torch.testing.assert_close(together, alone, rtol=0, atol=bound)  # float32: sums in another order
        twice = encoder(Tokens.of([TEN[0], TEN[0], "GG"]))
        assert torch.equal(*twice.residues[: 2 * len(TEN[0])].chunk(2))


def test_an_empty_batch_is_part_of_the_graph():
    encoder = tiny_encoder()
    x = encoder(Tokens.of([]))
    assert x.residues.shape == x.cls.shape == (0, 32)
    x.residues.sum().backward()
    missing = [n for n, w in encoder.named_parameters() if w.grad is None]
    assert missing == []


def test_no_lm_head_no_logits():
    with pytest.raises(ValueError, match="have no LM head"):
        tiny_encoder().logits(Tokens.of(["MKTV"]))
    with pytest.raises(ValueError, match="there is no layer 3: this encoder has 0"):
        tiny_encoder().representations(Tokens.of(["MKTV"]), [3])


def test_an_unknown_symbol_is_named():
    with pytest.raises(ValueError, match="'J' at position 3 is no symbol of ESM-2"):
        Tokens.of(["MKJ"])
    with pytest.raises(ValueError, match="'<masc>' at position 2"):
        Tokens.of(["M<masc>K"])
    with pytest.raises(ValueError, match="no symbol"):
        Tokens.of(["MΩK"])
