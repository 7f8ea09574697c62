"""What following λ costs a training step.

    python -m benchmarks.ratio_monitor [--network resnet50] [--size 128] [--batch 8] [--every 50]

A followed step attaches the hooks, reads λ of every layer, takes in the statistics and detaches. The
work that it adds is timed by itself, as it is less than steps differ by, and by interleaved steps with
and without it. One step in `every` is followed. Prints a table and writes
results/ratio_monitor.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import interleaved, markdown, summary, write_result
from exemplar_norm import convert_norm
from tasks.ratios.layers import GateRows, exemplar_layers
from tasks.ratios.survey import RatioSurvey

_ROUNDS = 50


def measure(network: str, size: int, batch: int, every: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step, followed and not, and of what following adds."""
    from torchvision.models import get_model

    model = convert_norm(get_model(network, weights=None), "en", preserve=False)
    layers = exemplar_layers(model)
    gates, survey = GateRows(layers), RatioSurvey(layers, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(batch, 3, size, size)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(images).float().logsumexp(1).mean().backward()
        optimizer.step()

    def followed() -> None:
        gates.attach()
        step()
        survey.update(gates.take())
        gates.detach()

    added = _added(gates, survey, batch)
    steps = interleaved({"step": step, "followed": followed}, rounds)
    times = {"added": interleaved({"added": added}, _ROUNDS)["added"], **steps}
    row: dict[str, Any] = {"network": network, "size": size, "batch": batch, "layers": len(layers)}
    row |= {f"{name}_ms": summary(seconds)["ms"] for name, seconds in times.items()}
    return {**row, "every": every, "share": row["added_ms"] / every / row["step_ms"]}


def _added(gates: GateRows, survey: RatioSurvey, batch: int) -> Callable[[], None]:
    """All that a followed step does beyond a step, the calls of the hooks included."""
    ratio = torch.full((batch, 3), 1 / 3)

    def work() -> None:
        gates.attach()
        for name in survey.order:
            gates.keep(name, ratio)
        survey.update(gates.take())
        gates.detach()

    return work


def table(row: dict[str, Any]) -> str:
    """The row as Markdown."""
    header = ["network", "layers", "step, ms", "followed step, ms", "added work, ms", "of all steps"]
    name = f"{row['network']}, {row['batch']} × {row['size']}²"
    times = [f"{row[f'{key}_ms']:.2f}" for key in ("step", "followed", "added")]
    return markdown(header, [[name, str(row["layers"]), *times, f"{100 * row['share']:.4f} %"]])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--every", type=int, default=50, help="Lightning's log_every_n_steps.")
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    row = measure(args.network, args.size, args.batch, args.every, args.rounds)
    print(f"{table(row)}\n\nwritten: {write_result('ratio_monitor', [row])}")


if __name__ == "__main__":
    main()
