"""The model card of an exported classifier."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from exemplar_norm.base import MomentLayer
from exemplar_norm.sources import read_source
from tasks.classification.load import Classifier
from tasks.models import norm_settings
from tasks.run_folder import RunFolder

_CARD = """# {network} with {norm}, {num_classes} classes

Exported from `{checkpoint}`.

## Use

```python
from tasks.classification import load_classifier

model = load_classifier("{folder}")
probabilities = model(model.preprocess(image)[None])  # image: PIL, or bytes (3, H, W)
```

The network takes float32 images (N, 3, {height}, {width}), RGB in [0, 1] less the mean {mean}, divided by
{std}, and returns logits (N, {num_classes}); `load_classifier` adds the softmax. An image is resized to
{resize} ({interpolation}){crop}. `config.json` holds this and the names of the classes.{onnx}

## Normalization

norm `{norm}`: {options}.

| layers | of kind |
|---|---|
{layers}

## Metrics

{metrics}

## Training

{training}

## Licence

Code: MIT. The use of the weights may also be bound by the terms of the training data.
"""

_ONNX = """ `model.onnx` has the input
`images` and the output `logits`, for any batch size, and the same description in its metadata."""


def model_card(
    classifier: Classifier, folder: str, formats: Sequence[str], run: RunFolder | None, checkpoint: Path
) -> str:
    """Markdown text: how to use the classifier, how it normalizes, what it reached, how it was trained.

    Args:
        classifier: What is exported.
        folder: Where it will lie.
        formats: What the network is written as.
        run: The run that it comes from, where that is known.
        checkpoint: The checkpoint that it comes from.
    """
    architecture, inputs = classifier.architecture, classifier.inputs
    settings = norm_settings(architecture.norm, architecture.norm_options)  # type: ignore[arg-type]
    height, width = inputs.size
    command = _command(run) if run else ""
    return _CARD.format(
        **architecture._asdict(),
        checkpoint=checkpoint,
        folder=folder,
        height=height,
        width=width,
        mean=tuple(inputs.mean),
        std=tuple(inputs.std),
        resize=" × ".join(map(str, inputs.resize)) + (" on its shorter side" * (len(inputs.resize) == 1)),
        interpolation=inputs.interpolation,
        crop=f", the centre of {height} × {width} cropped" if inputs.crop else "",
        onnx=_ONNX if "onnx" in formats else "",
        options=", ".join(f"{k} = {v}" for k, v in settings.items() if k != "process_group") or "no options",
        layers="\n".join(f"| {count} | `{kind}` |" for kind, count in _layers(classifier.network).items()),
        metrics=_metrics_table(run, classifier.config["epoch"], checkpoint) if run else "Not known.",
        training=f"```sh\n{command}\n```" if command else "Not known.",
    )


def _layers(network: nn.Module) -> Counter[str]:
    """How many normalization layers there are of each kind."""
    return Counter(
        f"{type(layer).__name__}({layer.extra_repr()})"
        for layer in network.modules()
        if isinstance(layer, MomentLayer) or read_source(layer)
    )


def _command(run: RunFolder) -> str:
    """The command in the first line of the run's configuration."""
    first = run.config.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("# python -m ") else ""


def _metrics_table(run: RunFolder, epoch: int, checkpoint: Path) -> str:
    """Validation metrics of the checkpoint's epoch; those of the test, which is of the best checkpoint."""
    path = run.path / "metrics.csv"
    if not path.is_file():
        return "Not known."
    found: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                is_of_epoch = name.startswith("val/") and row["epoch"] == str(epoch)
                is_of_test = name.startswith("test/") and checkpoint.name == run.best.name
                if value and (is_of_epoch or is_of_test):
                    found[name] = f"{float(value):.4f}"
    rows = "\n".join(f"| {name} | {value} |" for name, value in sorted(found.items()))
    return f"| metric | value |\n|---|---|\n{rows}" if rows else "Not known."
