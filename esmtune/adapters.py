"""Small weights put beside, or around, the frozen linear maps of an encoder: PEFT's, in our tree.

PEFT is imported where it is needed and not before: that takes seconds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from esmtune.checkpoints import checkpoint_format
from esmtune.esm2 import ESM2
from esmtune.registry import nearest


def linear_maps(encoder: ESM2) -> dict[str, str]:
    """The path of each linear map in the layers, adapted or not, and what transformers calls it.

    >>> from esmtune.esm2 import ESM2Config
    >>> encoder = ESM2(ESM2Config(num_layers=2, embed_dim=16, num_heads=2))
    >>> linear_maps(encoder)["layers.1.contract"]
    'encoder.layer.1.output.dense'
    """
    names = checkpoint_format["huggingface"]().names
    return {
        f"layers.{number}.{word}": names[f"layers.{{}}.{word}.weight"].removesuffix(".weight").format(number)
        for number, layer in enumerate(encoder.layers)
        for word, module in layer.named_children()
        if not isinstance(module, nn.LayerNorm)
    }


def is_adapted(encoder: ESM2) -> bool:
    """Whether an encoder has adapters in it."""
    return hasattr(encoder, "peft_config")


def adapter_weights(encoder: ESM2) -> dict[str, Tensor]:
    """The weights of the adapters alone, under their names in the encoder's state dict."""
    around = [f"{path}." for path in linear_maps(encoder) if is_around(encoder, path)]
    return {
        name: weight
        for name, weight in encoder.state_dict().items()
        for prefix in around
        if name.startswith(prefix) and not name.startswith(f"{prefix}base_layer.")
    }


def inject(encoder: ESM2, kind: str, targets: str, **settings: Any) -> dict[str, float]:
    """Put new adapters on all linear maps with certain names, in place, and freeze every weight.

    Args:
        encoder: a plain encoder.
        kind: PEFT's name for it: LORA, IA3, LOHA, LOKR, OFT or HRA.
        targets: last words of paths, with commas between them, such as `query,value`.
        settings: those of PEFT's configuration.

    Returns:
        The names of the weights that are to learn, each with 1, its share of the learning rate.

    Raises:
        ValueError: for a target that matches nothing, and for an encoder that has adapters already.
    """
    must_be_plain(encoder)
    paths = _matching(encoder, targets)
    if kind == "IA3":  # of the feed-forward network's inner channels it is the input of `contract` that is scaled
        settings["feedforward_modules"] = [path for path in paths if path.endswith(".contract")]
    return injected(encoder, configured(kind, target_modules=paths, **settings))


def merge(encoder: ESM2) -> None:
    """Work the adapters into the weights they stand beside, in place; what is left is a plain encoder.

    This is computed in float64, so that each weight is rounded once, however short its type is.

    Raises:
        ValueError: for adapters with NaN or infinity in them; the encoder stays as it is.
    """
    if broken := [name for name, weight in adapter_weights(encoder).items() if not weight.isfinite().all()]:
        raise ValueError(f"adapter weight {broken[0]!r} holds NaN or infinity and cannot be merged.")
    remove(encoder, _merge)


def must_be_plain(encoder: ESM2) -> None:
    """Refuse an encoder that has adapters.

    Raises:
        ValueError: if it has some.
    """
    if is_adapted(encoder):
        raise ValueError("the encoder has adapters already: merge them first.")


def is_around(encoder: ESM2, path: str) -> bool:
    """Whether there is an adapter around a linear map."""
    return hasattr(encoder.get_submodule(path), "base_layer")


def configured(kind: str, **settings: Any) -> Any:
    """PEFT's configuration of a kind of adapter."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](**settings)


def _matching(encoder: ESM2, targets: str) -> list[str]:
    paths = list(linear_maps(encoder))
    there = list(dict.fromkeys(path.split(".")[-1] for path in paths))
    words = [word.strip() for word in targets.split(",")]
    for word in words:
        if word not in there:
            raise ValueError(f"target {word!r} matches nothing.{nearest(word, there)} There are: {', '.join(there)}.")
    return [path for path in paths if path.split(".")[-1] in words]


def injected(encoder: ESM2, config: Any) -> dict[str, float]:
    """Put adapters of a configuration of PEFT's in place, freeze every weight, and name those that are new."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, encoder)
    moving = {name: 1.0 for name, weight in encoder.named_parameters() if weight.requires_grad}
    encoder.requires_grad_(False).train(encoder.training)  # what is new would train, whatever the encoder does
    return moving


def _merge(adapter: Any) -> None:
    device, dtype = adapter.weight.device, adapter.weight.dtype
    adapter.to("cpu", torch.float64).merge(safe_merge=True)
    adapter.to(device, dtype)


def remove(encoder: ESM2, before: Callable[[Any], None] = lambda adapter: None) -> None:
    """Put the linear maps back in the places of the adapters around them."""
    for layer in encoder.layers:
        for word, module in list(layer.named_children()):
            if hasattr(module, "base_layer"):
                before(module)
                setattr(layer, word, module.base_layer)
    if is_adapted(encoder):
        del encoder.peft_config
