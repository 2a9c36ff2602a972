"""The 33 symbols of ESM-2, in the order its weights were trained with."""

import re
import string

AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"
SYMBOLS = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *AMINO_ACIDS,
    *"XBUZO",  # any, Asx, selenocysteine, Glx, pyrrolysine
    *(".", "-", "<null_1>", "<mask>"),
)
INDEX = {symbol: index for index, symbol in enumerate(SYMBOLS)}
CLS, PAD, EOS, UNK, MASK = (INDEX[f"<{name}>"] for name in ("cls", "pad", "eos", "unk", "mask"))
RESIDUES = frozenset(SYMBOLS[4:29])
TRAINED_LENGTH = 1022  # residues: the longest crop that ESM-2 saw in training

_NO_SYMBOL = len(SYMBOLS)
_TABLE = bytes(INDEX.get(chr(code), _NO_SYMBOL) for code in range(256))
_SYMBOL = re.compile(r"<[^<>]*>|.", re.DOTALL)


def encode(sequence: str) -> bytes:
    """Turn a sequence into the indices of <cls>, its symbols and <eos>, a byte each.

    Symbols of several letters, such as `<mask>`, may stand between residues.

    >>> list(encode("MK<mask>V"))
    [0, 20, 15, 32, 7, 2]

    Raises:
        ValueError: for a symbol that ESM-2 does not know.
    """
    try:
        codes = sequence.encode("latin-1").translate(_TABLE)
    except UnicodeEncodeError:
        codes = bytes([_NO_SYMBOL])
    if _NO_SYMBOL in codes:
        symbols = _SYMBOL.findall(sequence)
        for position, symbol in enumerate(symbols, start=1):
            if symbol not in INDEX:
                raise ValueError(
                    f"{symbol!r} at position {position} is no symbol of ESM-2. It knows {' '.join(SYMBOLS)}."
                )
        codes = bytes(INDEX[symbol] for symbol in symbols)
    return bytes([CLS]) + codes + bytes([EOS])


def clean(sequence: str) -> str:
    """Mend what is harmless (lower case, surrounding blanks, one trailing `*`) and refuse the rest.

    >>> clean(" mktVRq* ")
    'MKTVRQ'

    Raises:
        ValueError: if nothing is left, or for a letter that stands for no amino acid, with its position.
    """
    mended = sequence.strip().removesuffix("*").rstrip().translate(_UPPER)
    if not mended:
        raise ValueError("the sequence is empty")
    if not RESIDUES.issuperset(mended):
        position, symbol = next((i, s) for i, s in enumerate(mended, start=1) if s not in RESIDUES)
        raise ValueError(
            f"{symbol!r} at position {position} is no amino acid{_HINTS.get(symbol, '')}; "
            f"ESM-2 reads {''.join(sorted(RESIDUES))}, and X stands for an unknown residue"
        )
    return mended


# Not str.upper(), for beyond ASCII that makes other letters: of a German sharp s, SS.
_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
_HINTS = {
    "*": " (a stop codon inside the sequence)",
    "-": " (a gap of an alignment: remove it)",
    ".": " (a gap of an alignment: remove it)",
}
