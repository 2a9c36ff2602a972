"""The 33 symbols against fair-esm's, and what is mended in a sequence."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esmtune.alphabet import CLS, EOS, INDEX, MASK, PAD, RESIDUES, SYMBOLS, UNK, clean, encode

# From bionemo's documentation: written down, not computed.
GOLDEN = (
    "<cls>0 <pad>1 <eos>2 <unk>3 L4 A5 G6 V7 S8 E9 R10 T11 I12 D13 P14 K15 Q16 N17 F18 Y19 M20 H21 W22 C23 X24 B25 "
    "U26 Z27 O28 .29 -30 <null_1>31 <mask>32"
)


def test_the_vocabulary():
    assert " ".join(f"{symbol}{INDEX[symbol]}" for symbol in SYMBOLS) == GOLDEN
    assert (CLS, PAD, EOS, UNK, MASK) == (0, 1, 2, 3, 32)
    assert "".join(sorted(RESIDUES)) == "ABCDEFGHIKLMNOPQRSTUVWXYZ"  # no J


def test_the_vocabulary_is_that_of_the_weights(real_weights):
    assert (real_weights / "vocab.txt").read_text().split() == list(SYMBOLS)


@given(st.lists(st.sampled_from(SYMBOLS)).map("".join))
@example("".join(SYMBOLS))
@example("KALTARQQEVFDLIRD<mask>ISQTGMPPTRAEIAQRLGFRSPNAAEEHLKALARKGVIEIVSGASRGIRLLQEE")
def test_encoding_is_that_of_fair_esm(sequence):
    esm = pytest.importorskip("esm")
    theirs = esm.data.Alphabet.from_architecture("ESM-1b")
    assert list(encode(sequence)) == [theirs.cls_idx, *theirs.encode(sequence), theirs.eos_idx]


@pytest.mark.parametrize(
    ("sequence", "named"),
    [("MKJ", "'J' at position 3"), ("mk", "'m' at position 1"), ("M K", "' ' at position 2"),
     ("M<mask><msk>", "'<msk>' at position 3"), ("M<", "'<' at position 2"), ("MK\n", r"'\\n' at position 3"),
     ("MΩ", "'Ω' at position 2"), ("Mÿ", "'ÿ' at position 2")],
)  # fmt: skip
def test_what_is_no_symbol(sequence, named):
    with pytest.raises(ValueError, match=f"{named} is no symbol of ESM-2"):
        encode(sequence)


@pytest.mark.parametrize("raw", ["MKTVRQ", "mktvrq", " MkTvRq\t", "MKTVRQ*", "MKTVRQ* \r\n", "\tmktvrq *"])
def test_what_is_mended(raw):
    assert clean(raw) == "MKTVRQ"


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [("", "is empty"), (" \n", "is empty"), ("*", "is empty"), ("MK*TV", r"'\*' at position 3 .*stop codon inside"),
     ("MKTV**", r"'\*' at position 5"), ("MK-TV", "'-' at position 3 .*a gap of an alignment"),
     ("M.K", r"'\.' at position 2 .*a gap"), ("MJK", "'J' at position 2 is no amino acid"), ("MK TV", "' ' at pos"),
     ("MK1", "'1' at position 3"), ("M<mask>K", "'<' at position 2"), ("MKß", "'ß' at position 3"),
     ("MK\u0131", "'\u0131' at position 3"), ("\u041cK", "'\u041c' at position 1")],  # a dotless i, a Cyrillic M
)  # fmt: skip
def test_what_is_refused(raw, sentence):
    with pytest.raises(ValueError, match=sentence):
        clean(raw)


@given(st.text() | st.text(alphabet="ACDEFGHIKLMNPQRSTVWYacdxbzuo *\t"))
def test_what_is_clean_stays_so_and_can_be_encoded(raw):
    try:
        cleaned = clean(raw)
    except ValueError:
        return
    assert clean(cleaned) == cleaned
    assert RESIDUES.issuperset(cleaned)
    assert len(encode(cleaned)) == len(cleaned) + 2
