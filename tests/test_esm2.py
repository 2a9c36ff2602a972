"""The encoder by itself: long sequences, gradients, company, and what it refuses. `test_oracles.py` has every token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from esmtune.alphabet import PAD, SYMBOLS
from esmtune.attention import rotary_angles
from esmtune.esm2 import ESM2, ESM2Config, Tokens, drop_masked
from tests.conftest import TEN, tiny_encoder

SHAPE = ESM2Config(num_layers=3, embed_dim=32, num_heads=4)
LONG = ["MKTVRQERLK" * 30, "GAVLIMFWPS" * 103, "M"]


@pytest.fixture
def ours():
    torch.manual_seed(0)
    encoder = ESM2(SHAPE, lm_head=True).double().eval()
    for weight in encoder.parameters():
        nn.init.normal_(weight, std=0.2)
    encoder.frequency.copy_((encoder.frequency * 1.003).float())  # stored frequencies count, not recomputed ones
    return encoder


def fair_esm(encoder):
    """An `esm.ESM2` with the weights of ours, copied one by one rather than by our own table of names."""
    esm = pytest.importorskip("esm")
    theirs = esm.ESM2(num_layers=SHAPE.num_layers, embed_dim=SHAPE.embed_dim, attention_heads=SHAPE.num_heads)
    theirs = theirs.double().eval()
    pairs = [
        (theirs.embed_tokens, encoder.embed_tokens),
        (theirs.emb_layer_norm_after, encoder.norm),
        (theirs.lm_head.dense, encoder.lm_head.dense),
        (theirs.lm_head.layer_norm, encoder.lm_head.norm),
    ]
    for their, our in zip(theirs.layers, encoder.layers, strict=True):
        attention = their.self_attn
        pairs += [
            (their.self_attn_layer_norm, our.attention_norm), (their.final_layer_norm, our.feed_forward_norm),
            (attention.q_proj, our.query), (attention.k_proj, our.key), (attention.v_proj, our.value),
            (attention.out_proj, our.out), (their.fc1, our.expand), (their.fc2, our.contract),
        ]  # fmt: skip
        attention.rot_emb.inv_freq.copy_(encoder.frequency)
    for their, our in pairs:
        their.load_state_dict(our.state_dict())
    theirs.lm_head.bias.data.copy_(encoder.lm_head.bias)
    return theirs, pairs


def padded(tokens):
    return nn.utils.rnn.pad_sequence(tokens.ids.split(tokens.lengths), batch_first=True, padding_value=PAD)


def rows(theirs, tokens):
    """What an oracle gives for the residues, end to end."""
    return torch.cat([row[1 : n - 1] for row, n in zip(theirs, tokens.lengths, strict=True)])


def test_long_sequences_agree_with_fair_esm(ours):
    """To 1e-6, not closer: fair-esm's softmax is in float32 whatever the model is in."""
    theirs, _ = fair_esm(ours)
    tokens = Tokens.of(LONG)
    with torch.inference_mode():
        out = theirs(padded(tokens), repr_layers=range(4))
        for layer, x in enumerate(ours.representations(tokens, range(4))):
            torch.testing.assert_close(x.residues, rows(out["representations"][layer], tokens), rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.logits(tokens), rows(out["logits"], tokens), rtol=0, atol=1e-6)


def test_transformers_differs_by_its_own_rounding_alone(ours, monkeypatch, tmp_path):
    """transformers computes angles and rotates in float32; made to do so in float64, it agrees to 1e-12."""
    pytest.importorskip("transformers")
    from transformers.models.esm import modeling_esm as theirs

    def rotate(q, k, cos, sin, unsqueeze_dim=1):
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return q * cos + theirs.rotate_half(q) * sin, k * cos + theirs.rotate_half(k) * sin

    def angles(self, x, position_ids, layer_type=None):
        turns = position_ids[..., None].double() * self.inv_freq.double()
        both = torch.cat((turns, turns), dim=-1)
        return both.cos(), both.sin()

    import esmtune

    esmtune.save_huggingface(ours, tmp_path)
    model = theirs.EsmForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager").eval()
    tokens = Tokens.of(LONG)

    def distance():
        out = model(padded(tokens), attention_mask=(padded(tokens) != PAD).long(), output_hidden_states=True)
        layers = zip(ours.representations(tokens, range(4)), out.hidden_states, strict=True)
        apart = [(x.residues - rows(state, tokens)).abs().max().item() for x, state in layers]
        return max(*apart, (ours.logits(tokens) - rows(out.logits, tokens)).abs().max().item())

    with torch.inference_mode():
        assert 1e-12 < distance() < 1e-6
        monkeypatch.setattr(theirs, "apply_rotary_pos_emb", rotate)
        monkeypatch.setattr(theirs.EsmRotaryEmbedding, "forward", angles)
        assert distance() < 1e-12


def test_gradients_agree_with_fair_esm(ours):
    """What full fine-tuning follows: the derivative by every weight, to a millionth of the largest of each kind."""
    theirs, pairs = fair_esm(ours)
    tokens = Tokens.of([*TEN[:4], "MK<mask>VRQ", "GG", "GG"])
    ours.logits(tokens).square().mean().backward()
    rows(theirs(padded(tokens))["logits"], tokens).square().mean().backward()
    compared = 0
    for their, our in pairs:
        for expected, got in zip(their.parameters(), our.parameters(), strict=True):
            bound = 1e-6 * max(1.0, expected.grad.abs().max().item())
            torch.testing.assert_close(got.grad, expected.grad, rtol=0, atol=bound)
            compared += 1
    assert compared == len(list(ours.parameters())) - 1  # and the bias of the LM head
    torch.testing.assert_close(ours.lm_head.bias.grad, theirs.lm_head.bias.grad, rtol=0, atol=1e-6)


sequences = st.lists(st.lists(st.sampled_from(SYMBOLS), max_size=12).map("".join), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(sequences, st.randoms(use_true_random=False))
def test_company_and_order_change_nothing(batch, random):
    """Whatever symbols stand in it, `<pad>` and `<mask>` too: alone or beside others, in any order."""
    encoder = tiny_encoder(lm_head=True).double()
    order = random.sample(range(len(batch)), len(batch))
    tokens = Tokens.of([batch[i] for i in order])
    with torch.inference_mode():
        together, logits = encoder.representations(tokens, [0, 1, -1]), encoder.logits(tokens)
        parts = [x.residues.split(x.lengths) for x in together] + [logits.split(together[0].lengths)]
        for place, i in enumerate(order):
            only = Tokens.of([batch[i]])
            alone = encoder.representations(only, [0, 1, -1])
            expected = [x.residues for x in alone] + [encoder.logits(only)]
            for part, x in zip(parts, expected, strict=True):
                torch.testing.assert_close(part[place], x, rtol=0, atol=1e-12)
            for x, y in zip(together, alone, strict=True):
                torch.testing.assert_close(x.cls[place], y.cls[0], rtol=0, atol=1e-12)


def test_a_sequence_is_found_by_its_lengths_and_its_seed():
    tokens = Tokens.of(["MKTV", "", "GG"], seeds=torch.tensor([7, 8, 9]))
    x = tiny_encoder()(tokens)
    assert (x.lengths, x.seeds.tolist()) == ((4, 0, 2), [7, 8, 9])
    assert (x.residues.shape, x.cls.shape) == ((6, 32), (3, 32))


def test_masking_rescales_what_is_left():
    """bionemo's golden value: one of four tokens masked, so .88 / .75."""
    ids = torch.tensor([1, 2, 3, 32, 5])
    tokens = Tokens(ids, (5,), torch.zeros(1, dtype=torch.long), has_pad=True)
    scaled = drop_masked(torch.ones(5, 2, dtype=torch.float64), tokens)
    torch.testing.assert_close(scaled[:, 0], torch.tensor([0, 1, 1, 0, 1]) * (0.88 / 0.75), check_dtype=False)


def test_layers_in_any_order_and_more_than_once():
    encoder, tokens = tiny_encoder(), Tokens.of(list(TEN))
    each = [encoder.representations(tokens, [layer])[0].residues for layer in range(3)]
    got = encoder.representations(tokens, [2, 0, -1, 1, -3])
    for x, layer in zip(got, [2, 0, 2, 1, 0], strict=True):
        assert torch.equal(x.residues, each[layer])
    assert torch.equal(encoder(tokens).residues, each[2])


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [([3], "no layer 3"), ([-4], "no layer -4: .* 0 .the embeddings. to 2, or -3 to -1"), ([], "no layer is asked")],
)
def test_layers_that_are_not_there(layers, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_encoder().representations(Tokens.of(["MKTV"]), layers)


def test_bfloat16_keeps_positions_apart():
    """Angles are computed in float32 and rounded last: in bfloat16, position 1,000 could not be told from 1,001."""
    frequency = tiny_encoder().frequency
    exact = torch.arange(1100).double()[:, None] * frequency.double()
    cos, sin = rotary_angles((1100, 3), frequency, torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    torch.testing.assert_close(cos[:1100, 0].double(), exact.cos(), rtol=0, atol=2**-8)
    torch.testing.assert_close(sin[:1100, 0].double(), exact.sin(), rtol=0, atol=2**-8)
    assert torch.equal(cos[1100:], cos[:3])  # each sequence begins at position 0


@pytest.mark.parametrize(("dim", "heads"), [(32, 0), (30, 4), (12, 4), (0, 1)])
def test_a_size_that_cannot_be(dim, heads):
    with pytest.raises(ValueError, match="an even number of channels for each head"):
        ESM2Config(num_layers=1, embed_dim=dim, num_heads=heads)
