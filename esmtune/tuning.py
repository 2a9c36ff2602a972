"""Which weights of the encoder move. Add yours at the end, decorated with the name users write.

A tuning is called with the encoder, all of whose weights are frozen, and returns the name of each
weight that is to move with its share of the learning rate. It may put adapters in the encoder first.
The head always moves.

Adapters draw their first weights from torch's global generator, and what LoRA's own dropout drops too:
it then depends on how batches are split, which is why there is none unless asked for.
"""

from collections.abc import Callable

from esmtune.adapters import inject
from esmtune.config import FEW_LABELS
from esmtune.esm2 import ESM2
from esmtune.registry import Registry

tuning: Registry[Callable[..., dict[str, float]]] = Registry("tuning")

# With adapters on all linear maps a low rank is enough to do as well as full tuning; with adapters on queries
# and values alone it is not, at any rank. Dettmers et al., QLoRA (2023), figure 2. https://doi.org/10.48550/arXiv.2305.14314
EVERY_MAP = "query,key,value,out,expand,contract"


LARGE_ENCODER = 400_000_000  # weights, between the 150M and the 650M


def automatic(weights: int, labels: int) -> tuple[str, str]:
    """The tuning for an encoder of so many weights and so many training labels, and why.

    Schmirler et al. (2024), 8M to 3B on eight data sets: full is ahead up to 150M, LoRA from 650M.
    https://doi.org/10.1038/s41467-024-51844-2

    >>> automatic(7_500_000, 5000)[0], automatic(650_000_000, 5000)[0], automatic(7_500_000, 20)[0]
    ('full', 'lora', 'frozen')
    """
    if labels < FEW_LABELS:
        return "frozen", f"{labels:,} labels are too few to move an encoder by"
    size = f"{weights / 1e6:,.0f} million" if weights >= 1e6 else f"{weights:,}"
    if weights < LARGE_ENCODER:
        return "full", f"an encoder of {size} weights gains most when all of them move"
    return "lora", f"an encoder of {size} weights gains as much by LoRA as in full, for less"


@tuning("frozen")
def frozen(encoder: ESM2) -> dict[str, float]:
    """Nothing: the head alone learns, and each sequence passes the encoder once."""
    return {}


@tuning("last")
def last(encoder: ESM2, *, layers: int = 2) -> dict[str, float]:
    """The last few layers and the final norm."""
    total = len(encoder.layers)
    if not 1 <= layers <= total:
        raise ValueError(f"tuning 'last' has layers={layers}, but the encoder has {total}: write 1 to that.")
    moving = ("norm.", *(f"layers.{number}." for number in range(total - layers, total)))
    return {name: 1.0 for name, _ in encoder.named_parameters() if name.startswith(moving)}


@tuning("full")
def full(encoder: ESM2, *, layer_decay: float = 1.0) -> dict[str, float]:
    """Every weight; with layer_decay below 1, each layer learns that much slower than the one above it.

    Clark et al., ELECTRA (2020), give the factor layer_decay ** (number of layers - layer), where the
    embeddings are layer 0. https://doi.org/10.48550/arXiv.2003.10555
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"tuning 'full' has layer_decay={layer_decay}: write a number above 0 and up to 1.")
    below = {"embed_tokens": len(encoder.layers)}
    below |= {f"layers.{number}": len(encoder.layers) - 1 - number for number in range(len(encoder.layers))}
    return {
        name: layer_decay ** next((n for part, n in below.items() if name.startswith(f"{part}.")), 0)
        for name, _ in encoder.named_parameters()
    }


@tuning("probe-then-full")
def probe_then_full(encoder: ESM2, *, probe_epochs: int = 10, layer_decay: float = 1.0) -> dict[str, float]:
    """Every weight, after the head alone has learned for some epochs on the encoder as it was.

    Kumar et al. (2022): a head that knows nothing distorts what the encoder knows.
    https://doi.org/10.48550/arXiv.2202.10054
    """
    if probe_epochs < 1:
        raise ValueError(f"tuning 'probe-then-full' has probe_epochs={probe_epochs}: write 1 or more, or tuning full.")
    return full(encoder, layer_decay=layer_decay)


@tuning("bitfit")
def bitfit(encoder: ESM2) -> dict[str, float]:
    """The biases of linear maps and norms.

    Ben Zaken et al., BitFit (2022). https://doi.org/10.18653/v1/2022.acl-short.1
    """
    biases = (name for name, _ in encoder.named_parameters() if name.endswith(".bias"))
    return {name: 1.0 for name in biases if name.startswith(("layers.", "norm."))}


@tuning("lora")
def lora(
    encoder: ESM2,
    *,
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    targets: str = EVERY_MAP,
    rslora: bool = False,
) -> dict[str, float]:
    """A product of two thin matrices, scaled by alpha / rank, is added to each linear map.

    Hu et al., LoRA (2021). https://doi.org/10.48550/arXiv.2106.09685. With rslora the scale is
    alpha / sqrt(rank): Kalajdzievski (2023). https://doi.org/10.48550/arXiv.2312.03732
    """
    _check("lora", rank=rank, alpha=alpha, dropout=dropout)
    settings = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "use_rslora": rslora}
    return inject(encoder, "LORA", targets, **settings)


@tuning("dora")
def dora(
    encoder: ESM2, *, rank: int = 8, alpha: int = 16, dropout: float = 0.0, targets: str = EVERY_MAP
) -> dict[str, float]:
    """LoRA for the direction of each row of a linear map, and its length as a weight of its own.

    Liu et al., DoRA (2024). https://doi.org/10.48550/arXiv.2402.09353
    """
    _check("dora", rank=rank, alpha=alpha, dropout=dropout)
    return inject(encoder, "LORA", targets, r=rank, lora_alpha=alpha, lora_dropout=dropout, use_dora=True)


@tuning("ia3")
def ia3(encoder: ESM2, *, targets: str = "key,value,contract") -> dict[str, float]:
    """A factor for each channel that leaves a linear map, or, of the map that contracts, enters it.

    Liu et al., IA3 (2022). https://doi.org/10.48550/arXiv.2205.05638
    """
    return inject(encoder, "IA3", targets)


@tuning("loha")
def loha(encoder: ESM2, *, rank: int = 8, alpha: int = 8, targets: str = EVERY_MAP) -> dict[str, float]:
    """Two products of thin matrices, multiplied number by number, are added: of rank up to rank squared.

    Hyeon-Woo et al., FedPara (2021). https://doi.org/10.48550/arXiv.2108.06098
    """
    _check("loha", rank=rank, alpha=alpha)
    return inject(encoder, "LOHA", targets, r=rank, alpha=alpha)


@tuning("lokr")
def lokr(encoder: ESM2, *, rank: int = 8, alpha: int = 8, targets: str = EVERY_MAP) -> dict[str, float]:
    """The Kronecker product of a small matrix and a product of thin ones is added.

    Yeh et al., LyCORIS (2023). https://doi.org/10.48550/arXiv.2309.14859
    """
    _check("lokr", rank=rank, alpha=alpha)
    return inject(encoder, "LOKR", targets, r=rank, alpha=alpha)


@tuning("oft")
def oft(encoder: ESM2, *, block: int = 32, targets: str = EVERY_MAP) -> dict[str, float]:
    """What enters a linear map is rotated, in blocks of channels.

    Qiu et al., OFT (2023). https://doi.org/10.48550/arXiv.2306.07280
    """
    if block < 2 or encoder.config.embed_dim % block:
        raise ValueError(f"tuning 'oft' has block={block}: write a divisor of {encoder.config.embed_dim}, 2 or more.")
    return inject(encoder, "OFT", targets, oft_block_size=block)


@tuning("hra")
def hra(encoder: ESM2, *, rank: int = 8, targets: str = EVERY_MAP) -> dict[str, float]:
    """What enters a linear map is mirrored, in turn, by as many planes as the rank says.

    Yuan et al., Householder reflection adaptation (2024). https://doi.org/10.48550/arXiv.2405.17484
    """
    _check("hra", rank=rank)
    if rank % 2:  # mirrors begin in equal pairs, each of which undoes what the other does
        raise ValueError(f"tuning 'hra' has rank={rank}: write an even number.")
    return inject(encoder, "HRA", targets, r=rank)


def _check(name: str, *, rank: int, alpha: int = 1, dropout: float = 0.0) -> None:
    if rank < 1 or alpha < 1:
        option, value = ("rank", rank) if rank < 1 else ("alpha", alpha)
        raise ValueError(f"tuning {name!r} has {option}={value}: write 1 or more.")
    if not 0 <= dropout < 1:
        raise ValueError(f"tuning {name!r} has dropout={dropout}: write a number from 0 up to, but not, 1.")
