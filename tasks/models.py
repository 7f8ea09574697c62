"""Classification networks by name, with the normalizer of choice."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, cast

from torch import nn

from tasks.errors import UserError, close_matches

Norm = Literal["bn", "in", "ln", "gn", "sn", "ssn", "cbn", "en"]


class NormOptions(TypedDict, total=False):
    """Options of the normalization layers; each layer takes its own subset."""

    normalizers: list[Literal["in", "ln", "bn", "gn"]]
    reduction: int
    hidden: int
    groups: int
    descriptor: Literal["mean", "mean_std"]
    eps: float
    momentum: float | None
    sync: bool


def network_names() -> list[str]:
    """Every name that `build_network` knows."""
    import torchvision

    return [*_OWN_NETWORKS, *torchvision.models.list_models(module=torchvision.models)]


def build_network(
    name: str, num_classes: int, norm: Norm = "bn", norm_options: NormOptions | None = None
) -> nn.Module:
    """Build a randomly initialised network and convert its normalizers.

    Args:
        name: "digits_resnet" or the name of a torchvision classification network.
        num_classes: Number of outputs.
        norm: Normalizer; with "bn" and no options the network stays as it was built.
        norm_options: Options of that normalizer.

    Raises:
        UserError: The network's name is unknown, or an option does not belong to the normalizer or is out of
            its range.
    """
    import torchvision

    if name in _OWN_NETWORKS:
        network = _OWN_NETWORKS[name](num_classes)
    elif name in network_names():
        network = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    else:
        raise UserError(
            f"model.network: unknown network {name!r}{close_matches(name, network_names())}: expected "
            f"{', '.join(_OWN_NETWORKS)} or a classification network of torchvision"
        )
    options: dict[str, Any] = {**(norm_options or {})}
    return network if norm == "bn" and not options else _convert(network, norm, options)


def _convert(network: nn.Module, norm: Norm, options: dict[str, Any]) -> nn.Module:
    from exemplar_norm import NORMS, convert_norm

    allowed = NORMS[norm].options
    for option in options:
        if option not in allowed:
            raise UserError(
                f"model.norm_options: norm {norm!r} has no option {option!r}: "
                f"expected one of {', '.join(allowed)}"
            )
    try:
        # The weights are random: there is no function to preserve, and γ = 1 is the layer's own start.
        return convert_norm(network, norm, preserve=False, **options)
    except ValueError as error:
        raise UserError(f"model.norm_options for norm {norm!r}: {error}") from error


def _digits_resnet(num_classes: int) -> nn.Module:
    """ResNet with two basic blocks in each of three stages (16, 32, 64 channels) and a stride-2 stem."""
    from timm.models.resnet import BasicBlock, ResNet

    network = ResNet(
        BasicBlock,
        layers=(2, 2, 2),
        channels=(16, 32, 64),
        num_classes=num_classes,
        stem_width=8,
        stem_type="deep",
        zero_init_last=False,
    )
    # Made for 224 pixels and four stages: at 32, pooling would leave 2×2 maps.
    network.maxpool = network.layer4 = nn.Identity()
    return cast(nn.Module, network)


_OWN_NETWORKS = {"digits_resnet": _digits_resnet}
