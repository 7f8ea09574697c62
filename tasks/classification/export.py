"""`python -m tasks.classification export --ckpt_path <file>`: a classifier for use elsewhere.

A folder with `config.json`, `README.md` (a model card) and the network as `model.safetensors`, `model.onnx`.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from tasks.arguments import LineParser
from tasks.classification.card import model_card
from tasks.classification.load import WEIGHTS, Classifier, checkpoint_in, load_classifier
from tasks.errors import UserError
from tasks.run_folder import RunFolder
from tasks.weight_files import METADATA

# Float32 rounding of a deep network is 1e-5 or so of its largest output; a wrong operator is far above.
_TOLERANCE = 1e-3
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def main(args: Sequence[str]) -> None:
    """Export a checkpoint, as the command line says.

    Raises:
        UserError: An option is wrong, there is no such checkpoint, or the folder exists already.
    """
    parser = LineParser(prog="python -m tasks.classification export", description=(__doc__ or "").strip())
    parser.add_argument("--ckpt_path", required=True, help="Checkpoint, or run folder (its best checkpoint).")
    parser.add_argument(
        "--output", help="Folder to make; by default export-<checkpoint> in the run's folder."
    )
    parser.add_argument(
        "--format", choices=[*_WRITERS, "all"], default="all", help="How the network is written."
    )
    options = parser.parse_args(args)
    formats = list(_WRITERS) if options.format == "all" else [options.format]
    checkpoint = checkpoint_in(Path(options.ckpt_path))
    print(f"exported to {export(checkpoint, options.output, formats)}")


def export(
    checkpoint: Path, output: str | Path | None = None, formats: Sequence[str] = ("safetensors",)
) -> Path:
    """Write a folder with the classifier of a checkpoint, whole or not at all.

    Args:
        checkpoint: A checkpoint.
        output: Folder to make; None for `export-<checkpoint>` beside the run's configuration.
        formats: "onnx", "safetensors" or both.

    Returns:
        The folder.

    Raises:
        UserError: The checkpoint cannot be used, the folder exists, ONNX's packages are missing, or what was
            exported computes something else.
    """
    run = RunFolder.of_checkpoint(checkpoint)
    home = run.path if run else checkpoint.parent
    folder = Path(output) if output else home / f"export-{checkpoint.stem}"
    if folder.exists():
        raise UserError(f"--output: {folder} exists already and is not overwritten")
    classifier = load_classifier(checkpoint)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be made: {error.strerror}") from error
    try:
        for name in formats:
            _WRITERS[name](classifier, unfinished)
        _write(unfinished / "config.json", json.dumps(classifier.config, indent=2, ensure_ascii=False) + "\n")
        _write(unfinished / "README.md", model_card(classifier, str(folder), formats, run, checkpoint))
        unfinished.rename(folder)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(unfinished)
        raise
    return folder


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_safetensors(classifier: Classifier, folder: Path) -> None:
    from safetensors.torch import save_file

    # A layer that is used in several places has several names, which the format does not know: copies.
    state = {name: value.contiguous().clone() for name, value in classifier.network.state_dict().items()}
    save_file(state, folder / WEIGHTS, {METADATA: json.dumps(classifier.config), "format": "pt"})


def _write_onnx(classifier: Classifier, folder: Path) -> None:
    """Write the network for any batch size, and compare what was written with it."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx: expected {', '.join(missing)}: pip install {' '.join(missing)}")
    import onnx

    path = folder / "model.onnx"
    images = torch.randn(3, 3, *classifier.inputs.size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            classifier.network,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    for key, value in classifier.config.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    program.save(path)
    onnx.checker.check_model(path)
    _compare(path, classifier.network, [images[:1], images])


def _compare(path: Path, network: nn.Module, batches: Sequence[Tensor]) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in batches:
        with torch.no_grad():
            wanted = network(batch)
        (got,) = session.run(None, {"images": batch.numpy()})
        difference = float((torch.from_numpy(got) - wanted).abs().max() / wanted.abs().max())
        if not difference <= _TOLERANCE:  # nan too
            raise UserError(
                f"--format onnx: what was exported differs from the network by {difference:.1e} of its "
                f"largest logit at batch {len(batch)}, expected at most {_TOLERANCE}"
            )


_WRITERS: dict[str, Callable[[Classifier, Path], None]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
}
