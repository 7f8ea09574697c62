"""Classification networks by name, with the normalizer of choice."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, Literal, TypedDict

import torch
from torch import nn

from exemplar_norm import NORMS, convert_norm
from exemplar_norm.sources import read_source
from tasks.errors import UserError
from tasks.networks import Architecture, build_native

Norm = Literal["bn", "in", "ln", "gn", "sn", "ssn", "cbn", "en"]


class NormOptions(TypedDict, total=False):
    """Options of the normalization layers; each layer takes its own subset."""

    normalizers: list[Literal["in", "ln", "bn", "gn"]]
    reduction: int
    reduced: int
    hidden: int
    groups: int
    descriptor: Literal["mean", "mean_std"]
    correlations: Literal["plain", "standardised", "scale_free"]
    gate_start: Literal["zero", "random"]
    gate_rate: float | None
    eps: float
    momentum: float | None
    sync: bool


def build_network(
    name: str,
    num_classes: int,
    norm: Norm = "bn",
    norm_options: NormOptions | None = None,
    weights: str | None = None,
) -> nn.Module:
    """Build a network and convert its normalizers.

    Args:
        name: "digits_resnet", "cifar_resnet18", the name of a torchvision classification network, or "timm/"
            and the name of a network of timm.
        num_classes: Number of outputs.
        norm: Normalizer; with "bn" and no options the network stays as it was built.
        norm_options: Options of that normalizer.
        weights: Pretrained weights to start from: a name of torchvision's, or a file. None starts at random.

    Raises:
        UserError: The network's name is unknown, an option does not belong to the normalizer or is out of
            its range, or the weights cannot be used.
    """
    network = build_native(name, num_classes)
    if not _is_native(norm, norm_options) and not any(read_source(module) for module in network.modules()):
        raise UserError(
            f"model.network: {name} has no normalization layer, so norm {norm!r} has nothing to do"
        )

    convert = partial(convert_network, norm=norm, norm_options=norm_options)
    if weights is None:
        # There is no function to preserve, and γ = 1 is the layer's own start.
        return convert(network, preserve=False)
    from tasks.pretrained import load_pretrained  # which needs this room

    architecture = Architecture(name, num_classes, norm, {**norm_options} if norm_options else None)
    return load_pretrained(network, architecture, weights, convert)


def norm_settings(norm: Norm, options: NormOptions | None) -> dict[str, Any]:
    """The options of a normalizer, those that were not given at their defaults where it has them."""
    arguments = inspect.signature(NORMS[norm].classes[None]).parameters
    defaults = {key: arguments[key].default for key in NORMS[norm].options if key in arguments}
    given: dict[str, Any] = {**(options or {})}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in {**defaults, **given}.items()}


def convert_network(
    network: nn.Module, preserve: bool, *, norm: Norm, norm_options: NormOptions | None
) -> nn.Module:
    """Convert the normalizers of a network in place; with "bn" and no options it stays as it was built.

    What is drawn at random behind it is the same whatever the normalizer: a second network starts alike too.

    Args:
        network: The network, with the normalizers of its library.
        preserve: That of `convert_norm`.
        norm: Normalizer.
        norm_options: Its options.

    Raises:
        UserError: An option does not belong to the normalizer or is out of its range.
    """
    if _is_native(norm, norm_options):
        return network
    options: dict[str, Any] = {**(norm_options or {})}
    allowed = NORMS[norm].options
    for option in options:
        if option not in allowed:
            raise UserError(
                f"model.norm_options: norm {norm!r} has no option {option!r}: "
                f"expected one of {', '.join(allowed)}"
            )
    try:
        with torch.random.fork_rng(devices=[]):  # gates draw weights, and other normalizers none
            return convert_norm(network, norm, preserve=preserve, **options)
    except ValueError as error:
        raise UserError(f"model.norm_options for norm {norm!r}: {error}") from error


def _is_native(norm: Norm, norm_options: NormOptions | None) -> bool:
    return norm == "bn" and not norm_options


# The normalizer that ends the residual branch, by the block's class; torchvision's and timm's agree.
_LAST_NORM = {"BasicBlock": "bn2", "Bottleneck": "bn3"}


@torch.no_grad()
def zero_last_gammas(network: nn.Module) -> None:
    """Set γ of the last normalizer of every residual block to zero, so that the block starts as the identity.

    Source: Goyal et al., arXiv:1706.02677, section 5.1.

    Raises:
        UserError: The network has no such block.
    """
    blocks = [m for m in network.modules() if type(m).__name__ in _LAST_NORM]
    if not blocks:
        raise UserError(
            "model.last_gamma_zero: expected a ResNet of torchvision or timm, got another network"
        )
    for block in blocks:
        getattr(block, _LAST_NORM[type(block).__name__]).weight.zero_()
