"""Classification networks by name, as their libraries build them: own, torchvision's and timm's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from torch import nn

from tasks.errors import UserError, close_matches

TIMM = "timm/"
"""What stands before the names of timm's networks."""


class Architecture(NamedTuple):
    """What a network is built from; the arguments of `tasks.models.build_network`."""

    network: str
    num_classes: int
    norm: str
    norm_options: dict[str, Any] | None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Architecture:
        """Pick the four out of hyper-parameters or a configuration that holds them."""
        return cls(*(settings[field] for field in cls._fields))


# Pretrained weights of these expect their own input normalisation: the network converts. It always does here,
# as a checkpoint does not hold the flag. Without `init_weights` they warn.
_INCEPTIONS = {
    name: {"init_weights": True, "transform_input": True} for name in ("inception_v3", "googlenet")
}


def network_names() -> list[str]:
    """The names without a prefix: own networks, then torchvision's."""
    import torchvision

    return [*_OWN_NETWORKS, *torchvision.models.list_models(module=torchvision.models)]


def build_native(name: str, num_classes: int) -> nn.Module:
    """Build a randomly initialised network with the normalizers that its library gives it.

    Args:
        name: "digits_resnet", "cifar_resnet18", the name of a torchvision classification network, or "timm/"
            and the name of a network of timm.
        num_classes: Number of outputs.

    Raises:
        UserError: The name is unknown.
    """
    if name.startswith(TIMM):
        return _timm_network(name, num_classes)
    if name in _OWN_NETWORKS:
        return _OWN_NETWORKS[name](num_classes)
    if name not in network_names():
        raise UserError(
            f"model.network: unknown network {name!r}{close_matches(name, network_names())}: expected "
            f"{', '.join(_OWN_NETWORKS)}, a classification network of torchvision, or {TIMM}<name> for one "
            "of timm"
        )
    import torchvision

    network = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **_INCEPTIONS.get(name, {})
    )
    return cast(nn.Module, network)


def _timm_network(name: str, num_classes: int) -> nn.Module:
    import timm

    # The list alone: timm would fetch "hf-hub:…" names from the network.
    names = [TIMM + known for known in timm.list_models()]
    if name not in names:
        raise UserError(
            f"model.network: timm has no network {name.removeprefix(TIMM)!r}{close_matches(name, names)}: "
            "expected a name of timm.list_models()"
        )
    network = timm.create_model(name.removeprefix(TIMM), pretrained=False, num_classes=num_classes)
    return cast(nn.Module, network)


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


def _cifar_resnet18(num_classes: int) -> nn.Module:
    """ResNet-18 whose stem keeps 32 pixels: a 3×3 convolution of stride 1 and no pooling."""
    import torchvision

    network = torchvision.models.resnet18(num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return cast(nn.Module, network)


_OWN_NETWORKS = {"digits_resnet": _digits_resnet, "cifar_resnet18": _cifar_resnet18}
