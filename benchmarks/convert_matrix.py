"""What `convert_norm` does to real networks: errors, parameters and operations.

    python -m benchmarks.convert_matrix [--only resnet18] [--size 224]

Every network gets random weights and random running statistics, is converted to "en", and compared with the
original in training and in evaluation, float32 and float64. Parameters and operations (of one image, as
`benchmarks.cost` counts them) are given for every norm of NORMS. Writes results/convert_matrix.json and
the tables of docs/conversion.md.
"""

from __future__ import annotations

import argparse
import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.cost import count
from benchmarks.document import replace_between
from benchmarks.measure import markdown, write_result
from exemplar_norm import NORMS, convert_norm
from exemplar_norm.exemplar import ExemplarNorm

DOCUMENT = Path(__file__).parents[1] / "docs" / "conversion.md"
MARKERS = ("<!-- convert_matrix: begin -->", "<!-- convert_matrix: end -->")
WITH_GN = {"normalizers": ("in", "ln", "bn", "gn")}


@dataclass(frozen=True)
class Network:
    """One row of the matrix: where a network comes from and how it is fed."""

    source: str
    name: str
    size: int = 64
    """Height and width of the small inputs on which it is compared."""
    frames: int = 0
    """Depth of a video network's input; 0 for images."""
    arguments: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    """Of `convert_norm`: networks of GroupNorm need "gn" among the normalizers."""

    def __str__(self) -> str:
        return f"{self.source} {self.name}"

    def build(self) -> nn.Module:
        """The network with random weights."""
        model: nn.Module
        if self.source == "torchvision":
            from torchvision.models import get_model

            backbone = {"weights_backbone": None} if self.name.startswith(("deeplab", "fcn")) else {}
            model = get_model(self.name, weights=None, **backbone, **self.arguments)
        elif self.source == "timm":
            import timm

            model = timm.create_model(self.name, pretrained=False, **self.arguments)
        else:
            import segmentation_models_pytorch as smp

            model = getattr(smp, self.name)("resnet18", encoder_weights=None, **self.arguments)
        return model

    def example(self, samples: int, size: int, **kind: Any) -> Tensor:
        """Random input of `samples` images."""
        depth = (self.frames,) if self.frames else ()
        return torch.randn(samples, 3, *depth, size, size, **kind)


_HEADS = {"aux_loss": True}
NETWORKS = [
    *(
        Network("torchvision", name)
        for name in (
            "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "shufflenet_v2_x0_5",
            "shufflenet_v2_x1_0", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0",
            "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "vgg16_bn",
        )
    ),
    Network("torchvision", "googlenet", arguments={"init_weights": False, "aux_logits": True}),
    # Its auxiliary head needs 299 pixels.
    Network("torchvision", "inception_v3", 96, arguments={"init_weights": False, "aux_logits": False}),
    Network("torchvision", "deeplabv3_resnet50", arguments=_HEADS),
    Network("torchvision", "fcn_resnet50", arguments=_HEADS),
    Network("torchvision", "r3d_18", 32, frames=8),
    *(
        Network("timm", name)
        for name in (
            "resnet50", "efficientnet_b0", "mobilenetv3_large_100", "regnety_004", "densenet121",
            "resnetv2_50", "cspresnet50", "ese_vovnet19b_dw", "ghostnet_100", "hrnet_w18_small", "xception41",
        )
    ),
    Network("timm", "resnet50_gn", options=WITH_GN),
    Network("timm", "resnetv2_50x1_bit", options=WITH_GN),
    *(Network("smp", name) for name in ("Unet", "DeepLabV3", "DeepLabV3Plus", "PSPNet", "UPerNet")),
    Network("smp", "FPN", options=WITH_GN),
]  # fmt: skip


def trained_like(network: Network) -> nn.Module:
    """The network as training might have left it, in float64: random affine and averages in its norms."""
    torch.manual_seed(0)
    model = network.build().eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | nn.GroupNorm)]
    averaged = [m for m in norms if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in averaged]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
        for norm in averaged:
            norm.train().momentum = 1.0
        # One batch sets the averages, so that activations neither vanish nor explode in evaluation; they are
        # then moved, so that taking the batch's in their place would show.
        model(network.example(16, network.size))
        for norm, momentum in zip(averaged, momenta, strict=True):
            norm.momentum = momentum
            mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
            var.mul_(torch.empty_like(var).uniform_(0.95, 1.05))
            mean.add_(0.05 * var.sqrt() * torch.randn_like(mean))
    return model.double()


def outputs(model: nn.Module, x: Tensor, training: bool) -> list[Tensor]:
    """Every tensor that the network returns; dropout and stochastic depth draw the same in every call."""
    torch.manual_seed(1)
    with torch.no_grad():
        return [t for t in tree_leaves(model.train(training)(x)) if isinstance(t, Tensor)]


def error(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest difference of any two, relative to the largest entry of the one that is wanted."""
    if len(got) != len(want):
        raise ValueError(f"expected {len(want)} outputs, got {len(got)}")
    pairs = zip(got, want, strict=True)
    return max((float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs), default=0.0)


def errors(network: Network) -> dict[str, float]:
    """Relative errors of the network converted to "en": its outputs both ways, and its averages after a step.

    "rounding" is what float32 alone does to the original's output, the scale to read the others by.
    """
    exact = trained_like(network)
    torch.manual_seed(2)
    x = network.example(2, network.size, dtype=torch.float64)
    found: dict[str, float] = {}
    wanted: dict[str, list[Tensor]] = {}
    for dtype, digits in ((torch.float64, "f64"), (torch.float32, "f32")):
        original = copy.deepcopy(exact).to(dtype)
        converted = convert_norm(copy.deepcopy(original), "en", **network.options)
        for mode in ("eval", "train"):
            got, want = (outputs(model, x.to(dtype), mode == "train") for model in (converted, original))
            found[f"{mode} {digits}"] = error(got, want)
            if digits == "f64":
                wanted[mode] = want
            else:
                found[f"{mode} rounding"] = error([t.double() for t in want], wanted[mode])
        found[f"averages {digits}"] = error(*averages(converted, original))
    return found


def averages(converted: nn.Module, original: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The running averages of every BatchNorm of the original, and of the layer that took its place."""
    pairs = []
    for name, old in original.named_modules():
        if isinstance(old, nn.modules.batchnorm._BatchNorm):
            new = converted.get_submodule(name)
            new = new[0] if isinstance(new, nn.Sequential) else new  # a norm with its activation
            pairs += [(getattr(new, key), getattr(old, key)) for key in ("running_mean", "running_var")]
    got, want = zip(*pairs, strict=True) if pairs else ((), ())
    return list(got), list(want)


def cost(network: Network, model: nn.Module, norm: str, size: int) -> dict[str, int] | None:
    """Parameters and operations of `model` with every layer made `norm`; None where that cannot run."""
    converted = convert_norm(copy.deepcopy(model), norm, preserve=False).eval()
    try:
        with quiet():
            return count(converted, network.example(1, size, device="meta"))
    except ValueError as refusal:  # PyTorch's InstanceNorm of one value per channel
        if "spatial element" not in str(refusal):
            raise
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the networks' own warnings (future defaults, deprecated calls)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def row(network: Network, size: int) -> dict[str, Any]:
    """Everything that the tables say of one network."""
    with quiet():
        model = network.build().to("meta")
        costs = {norm: cost(network, model, norm, 112 if network.frames else size) for norm in NORMS}
        layers = sum(isinstance(m, ExemplarNorm) for m in convert_norm(model, preserve=False).modules())
        found = errors(network)
    return {"network": str(network), "layers": layers, "errors": found, "costs": costs}


def tables(rows: list[dict[str, Any]]) -> str:
    """The rows as two Markdown tables."""
    kinds = [f"{mode} {what}" for mode in ("eval", "train") for what in ("f64", "f32", "rounding")]
    kinds += ["averages f64", "averages f32"]
    exact = markdown(
        ["network", "layers", *kinds],
        [[r["network"], str(r["layers"]), *(f"{r['errors'][k]:.0e}" for k in kinds)] for r in rows],
    )
    costs = markdown(
        ["network", *NORMS], [[r["network"], *map(_cost_cell, r["costs"].values())] for r in rows]
    )
    return f"{exact}\n\n{costs}"


def _cost_cell(cost: dict[str, float] | None) -> str:
    return f"{cost['parameters'] / 1e6:.2f} / {cost['flops'] / 1e9:.3f}" if cost else "–"


def main() -> None:
    """Measure every network, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="networks whose name contains this; nothing is written")
    parser.add_argument("--size", type=int, default=224, help="of the image whose operations are counted")
    args = parser.parse_args()
    logging.getLogger("exemplar_norm").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # on maps this small a second thread only waits
    rows = []
    for network in NETWORKS:
        if args.only in str(network):
            rows.append(row(network, args.size))
            print(rows[-1]["network"], rows[-1]["errors"], flush=True)
    print(tables(rows))
    if not args.only:
        replace_between(DOCUMENT, *MARKERS, f"\n{tables(rows)}\n")
        print(f"written: {write_result('convert_matrix', rows)} and {DOCUMENT}")


if __name__ == "__main__":
    main()
