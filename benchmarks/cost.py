"""Parameters and floating-point operations of ResNet-50 with each normalizer.

    python -m benchmarks.cost [--network resnet50] [--size 224]

Operations are those of convolutions and matrix products for one image, two a multiply-add, as
PyTorch's own counter gives them; element-wise work is left out for every normalizer alike. Prints
a table and writes results/cost.json.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import markdown, write_result
from exemplar_norm import NORMS, convert_norm


def count(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Parameters of a network, and operations of one pass over `x`; both may be on the meta device."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(x)
    return {"parameters": sum(p.numel() for p in model.parameters()), "flops": counter.get_total_flops()}


def cost(network: str, norm: str, size: int) -> dict[str, Any]:
    """Parameters and operations of a torchvision network with `norm` in every normalization layer."""
    from torchvision.models import get_model

    with torch.device("meta"):
        model = convert_norm(get_model(network, weights=None), norm, preserve=False).eval()
        counted = count(model, torch.empty(1, 3, size, size))
    return {"network": network, "norm": norm, "size": size, **counted}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    base = rows[0]
    return markdown(
        ["norm", "parameters", "more than bn", "GFLOP", "more than bn"],
        [
            [
                row["norm"],
                f"{row['parameters']:,}",
                f"{row['parameters'] - base['parameters']:,}",
                f"{row['flops'] / 1e9:.4f}",
                f"{(row['flops'] - base['flops']) / base['flops']:.2e}",
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    rows = [cost(args.network, norm, args.size) for norm in NORMS]
    print(f"{args.network} at {args.size}²\n\n{table(rows)}\n\nwritten: {write_result('cost', rows)}")


if __name__ == "__main__":
    main()
