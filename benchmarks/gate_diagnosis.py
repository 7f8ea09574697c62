"""What happens inside EN's gates while networks train and while a converted one is fine-tuned.

    python -m benchmarks.gate_diagnosis [--cases styled fashion lite0] [--seed 4]

Two cases are trained as `benchmarks.gate_choice` does (digits_resnet, 14 epochs of batches of 64), each with
the published gate and with its variant "standardised, rate 30":

    styled   the digits under all styles;
    fashion  1,200 images of Fashion-MNIST under all styles.

One is fine-tuned as `benchmarks.finetune` does, with gate_rate 1 and with 1/C, which `convert_norm` sets:

    lite0    EfficientNet-Lite0 with its ImageNet weights to Fashion-MNIST, two images a step, SGD, rate 3e-3.

Every few steps `diagnose_gates` looks at all layers on the same images (64, for lite0 8) in training mode;
the state is then as it was before. Writes results/gate_diagnosis.json after each case, so that an interrupted
series goes on, and docs/images/gate-*.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import finetune, gate_choice, gate_pictures
from benchmarks.document import has_marks, replace_between
from benchmarks.drawing import save
from benchmarks.measure import RESULTS, machine, markdown
from exemplar_norm import ExemplarNorm2d, diagnose_gates
from tasks.classification.fashion import FashionDataModule
from tasks.classification.styles import STYLES
from tasks.data import SeededDataset
from tasks.whole_file import whole_file

Row = dict[str, Any]
RESULT = RESULTS / "gate_diagnosis.json"
DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- gate_diagnosis: layers -->\n", "<!-- /gate_diagnosis: layers -->\n"
VARIANTS = ("published", "standardised, rate 30")
RATES = ("en, rate 1", "en")
DATA: dict[str, Callable[[int], Any]] = {
    "styled": lambda seed: gate_choice.DATA["styled"](seed=seed),
    "fashion": lambda seed: FashionDataModule(seed=seed, styles=list(STYLES), train_samples=1200),
}
_RUN_AND_LAYER = ("case", "seed", "variant", "layer")
_FIXED = ("normalizers", "channels", "reduction", "reduced")
PROBED, EVERY = 64, 21
"""Test images that are looked at, and training steps between two looks."""
TUNED_PROBED, TUNED_EVERY, TUNED_STEPS, TUNED_RATE = 8, 4, 60, 3e-3


def main() -> None:
    """Run the cases that are missing, draw, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", choices=[*DATA, "lite0"], default=[*DATA, "lite0"])
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--to", type=Path, default=DOCS / "images", help="folder of the pictures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = read(args.result)
    for case in args.cases:
        if any((row["case"], row["seed"]) == (case, args.seed) for row in result["rows"]):
            print(f"{case}, seed {args.seed}: in {args.result} already", flush=True)
            continue
        rows = tune(args.seed) if case == "lite0" else train(case, args.seed)
        result["rows"] += [{"case": case, "seed": args.seed, **row} for row in rows]
        write(args.result, result)
    rows = [row for row in result["rows"] if row["seed"] == args.seed]
    args.to.mkdir(parents=True, exist_ok=True)
    for name, draw in gate_pictures.PICTURES.items():
        figure = draw({**result, "rows": rows})
        if figure is None:
            print(f"{name}: left out, as its cases are missing")
            continue
        save(figure, args.to / f"{name}.png")
        print(f"written: {args.to / name}.png")
    text = table(rows)
    print(text)
    document = DOCS / "gate.md"
    if args.result == RESULT and has_marks(document, BEGIN, END):
        replace_between(document, BEGIN, END, text)


# --- the file


def read(path: Path) -> dict[str, Any]:
    """What was measured so far.

    Raises:
        RuntimeError: the file is of another machine.
    """
    here = machine()
    if not path.exists():
        return {"machine": here, "rows": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key in here if key != "date" and found["machine"].get(key) != here[key]]
    if differing:
        got = ", ".join(f"{key} {found['machine'].get(key)} instead of {here[key]}" for key in differing)
        raise RuntimeError(f"{path}: expected measurements of this machine, got {got}: move the file away")
    return {**found, "rows": by_step(found["rows"])}


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the file, a line a layer of a run, its values a list over the steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in by_layer(result["rows"]))
    with whole_file(path) as file:
        file.write(f'{{"machine": {json.dumps(result["machine"])},\n"rows": [\n{lines}\n]}}\n')


def by_layer(rows: list[Row]) -> list[Row]:
    """One row for all steps of a layer in a run."""
    layers: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        own = layers.setdefault(
            tuple(row[key] for key in _RUN_AND_LAYER), {key: row[key] for key in (*_RUN_AND_LAYER, *_FIXED)}
        )
        for key in sorted(row.keys() - {*_RUN_AND_LAYER, *_FIXED}):
            own.setdefault(key, []).append(row[key])
    for own in layers.values():
        norms = own["gradients"]
        own["gradients"] = {key: [one[key] for one in norms] for key in norms[0]}
    return list(layers.values())


def by_step(layers: list[Row]) -> list[Row]:
    """A row a step of each row of `by_layer`, as they came."""
    rows = []
    for own in layers:
        fixed = {key: own[key] for key in (*_RUN_AND_LAYER, *_FIXED)}
        norms = own["gradients"]
        for k in range(len(own["step"])):
            moving = {key: own[key][k] for key in own.keys() - fixed.keys() - {"gradients"}}
            rows.append(fixed | moving | {"gradients": {key: norms[key][k] for key in norms}})
    return rows


# --- the cases


def train(case: str, seed: int) -> list[Row]:
    """Rows of a case that is trained from scratch, with both gates."""
    data = DATA[case](seed)
    data.setup("fit")
    images, labels = gate_choice.stacked(data, "test", seed)
    shown = torch.linspace(0, len(images) - 1, PROBED).long()
    inputs, targets = images[shown], labels[shown]

    def loss_of(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=0.05)

    rows: list[Row] = []
    for variant in VARIANTS:
        network = gate_choice.build(variant, seed, data.num_classes)
        watch = Watch(network, inputs, loss_of)
        gate_choice.train(network, SeededDataset(data.examples("train"), seed), seed)
        rows += [{"variant": variant, **row} for row in watch.end()]
        top1 = gate_choice.accuracy(network, images, labels)
        print(f"{case}, {variant}: {watch.steps} steps, top-1 {100 * top1:.1f} %", flush=True)
    return rows


class Watch:
    """Looks at a network every few training steps from outside: the loop is the other study's own."""

    def __init__(self, network: nn.Module, inputs: Tensor, loss_of: Callable[[Tensor], Tensor]) -> None:
        self.network, self.inputs, self.loss_of = network, inputs, loss_of
        self.steps = 0
        self.rows: list[Row] = []
        self._handle = network.register_forward_pre_hook(self._before_step)

    def _before_step(self, network: nn.Module, inputs: tuple[Tensor]) -> None:
        if inputs[0] is self.inputs:  # a look of its own
            return
        if self.steps % EVERY == 0:
            self._look()
        self.steps += 1

    def _look(self) -> None:
        found = look(self.network, self.inputs, self.loss_of)
        self.rows += [{"step": self.steps, **row} for row in found]

    def end(self) -> list[Row]:
        """Look a last time; the rows."""
        self._handle.remove()
        self._look()
        return self.rows


def tune(seed: int) -> list[Row]:
    """Rows of the fine-tuned case, at both rates of the gate."""
    case = finetune.lite0()
    inputs, targets = case.batch(list(range(TUNED_PROBED)), seed)
    rows: list[Row] = []
    for norm in RATES:
        network = finetune.convert(case, norm, seed).train()
        optimizer = finetune._optimizer("sgd", network, TUNED_RATE)

        def note(step: int, network: nn.Module = network, variant: str = norm) -> None:
            found = look(network, inputs, lambda logits: case.loss(logits, targets))
            rows.extend({"variant": variant, "step": step, **row} for row in found)

        loss = math.nan
        for step, indices in enumerate(finetune._order(case.size, 2, TUNED_STEPS, seed)):
            if step % TUNED_EVERY == 0:
                note(step)
            loss = finetune._step(network, optimizer, case, indices, seed)
            if not math.isfinite(loss):
                print(f"lite0, {norm}: ended at step {step}, as the loss is {loss}", flush=True)
                break
        else:
            note(TUNED_STEPS)
        print(f"lite0, {norm}: loss of the last step {loss:.3f}", flush=True)
    return rows


# --- a look


def look(network: nn.Module, inputs: Tensor, loss_of: Callable[[Tensor], Tensor]) -> list[Row]:
    """A row a layer from one forward and backward pass in training mode, which leaves no trace."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, ExemplarNorm2d)]
    outputs: dict[str, float] = {}
    with diagnose_gates(network) as gates, output_deviations(layers, outputs):
        loss_of(network(inputs)).backward()  # type: ignore[no-untyped-call]
    network.zero_grad()
    network.load_state_dict(state)
    return [
        {
            "layer": name, "normalizers": list(gate.normalizers), "channels": gate.channels,
            "reduction": gate.reduction, "reduced": gate.reduced, "v_spread": rounded(gate.v_spread),
            **{
                f"{key}_norm": rounded(getattr(gate, key).norm())
                for key in ("v_mean", "v_std", "seen_std")
            },
            **{key: rounded(getattr(gate, key)) for key in ("z_rms", "ratio_mean", "ratio_std")},
            "saturated": rounded(gate.saturated), "output_std": rounded(outputs[name]),
            "gradients": {key: rounded(value) for key, value in gate.gradients.items()},
        }
        for name, gate in gates.items()
    ]  # fmt: skip


@contextmanager
def output_deviations(layers: Sequence[tuple[str, nn.Module]], found: dict[str, float]) -> Iterator[None]:
    """Put the standard deviation of each layer's output into `found`."""

    def keep(name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            found[name] = float(output.detach().std())

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rounded(value: Tensor | float) -> Any:
    """The value, or the list of a tensor's, to four digits."""
    if isinstance(value, Tensor) and value.dim():
        return [rounded(one) for one in value.tolist()]
    return float(f"{float(value):.4g}")


# --- the table


def table(rows: list[Row]) -> str:
    """One line a layer of the styled digits after training, the published gate beside the other."""
    last = max((row["step"] for row in rows if row["case"] == "styled"), default=None)
    kept = {
        (row["layer"], row["variant"]): row for row in rows if (row["case"], row["step"]) == ("styled", last)
    }
    heading = [
        "layer",
        "C",
        "C/r",
        "std v / mean v",
        "std FC₁ is given",
        "\\|h\\| > 0.9",
        "std of λ",
        "gradient at λ",
    ]
    lines = []
    for name in dict.fromkeys(layer for layer, _ in kept):
        pair = [kept[name, variant] for variant in VARIANTS]
        cells = [
            [str(r["reduced"]), f"{r['v_spread']:.2g}", f"{r['seen_std_norm']:.2g}",
             f"{100 * r['saturated']:.0f} %", f"{max(r['ratio_std']):.1g}", f"{r['gradients']['ratio']:.1g}"]
            for r in pair
        ]  # fmt: skip
        both = [" / ".join(values) for values in zip(*cells, strict=True)]
        lines.append([f"`{name}`", str(pair[0]["channels"]), *both])
    return markdown(heading, lines) + "\n" if lines else "not measured yet\n"


if __name__ == "__main__":
    main()
