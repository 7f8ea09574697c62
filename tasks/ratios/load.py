"""A trained network and its data, as the command line of its task builds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError
from tasks.report.expected import command_of
from tasks.report.facts import facts_of_config
from tasks.run_folder import RunFolder

if TYPE_CHECKING:
    from tasks.base import BaseModule
    from tasks.data import BaseDataModule

MODULES = {
    "classification": "ClassificationModule",
    "noisy_labels": "NoisyLabelsModule",
    "segmentation": "SegmentationModule",
}
"""Name of each task and of its module's class."""


@dataclass(frozen=True)
class Trained:
    """What is analysed.

    Attributes:
        name: What tables and figures call it.
        task: Its task.
        folder: Its run folder; None for a checkpoint that lies elsewhere.
        checkpoint: Where the weights come from.
        model: The task's module, in evaluation mode.
        data: The task's data, not set up.
        facts: Data set, network and normalizer.
    """

    name: str
    task: str
    folder: Path | None
    checkpoint: Path
    model: BaseModule
    data: BaseDataModule
    facts: dict[str, str]


def load_trained(path: Path, configs: Sequence[str], task: str | None, options: Sequence[str]) -> Trained:
    """Build module and data, and load the weights; nothing in the file is run.

    Args:
        path: A run folder (its best checkpoint) or a checkpoint.
        configs: Configuration files; none takes that of the run.
        task: Name of the task; None takes that of the run.
        options: More options of the task's command line, such as `--data.root`.

    Raises:
        UserError: There is no checkpoint or configuration, or they do not fit each other.
    """
    run = RunFolder(path)
    checkpoint = next((file for file in (path, run.best, run.last) if file.is_file()), None)
    if checkpoint is None:
        raise UserError(f"--ckpt: expected a run folder or a checkpoint, got {str(path)!r}, which holds none")
    found = RunFolder.of_checkpoint(checkpoint)
    if not configs and found is None:
        raise UserError(f"--config: expected the configuration of {checkpoint}, which lies in no run folder")
    files = list(configs) or [str(found.config)] if found else list(configs)
    from tasks.checkpoint import read_checkpoint

    task = task or _task_of(Path(files[0]))
    built = _build(task, checkpoint, files, options)
    built.model.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    where = found.path if found else None
    facts = facts_of_config(where or checkpoint.parent)
    return Trained(
        name=(where or checkpoint).resolve().name,
        task=task,
        folder=where,
        checkpoint=checkpoint,
        model=built.model.eval(),
        data=built.datamodule,
        facts={"data set": facts.dataset, "network": facts.network, "norm": facts.norm},
    )


def _build(task: str, checkpoint: Path, configs: Sequence[str], options: Sequence[str]) -> Any:
    from tasks.cli import ExperimentCLI
    from tasks.quiet import quiet_lightning

    class Built(ExperimentCLI):
        """The parts, with nothing run."""

        def validate(self, model: Any, datamodule: Any, ckpt_path: str) -> None:
            """Nothing."""

    quiet_lightning()
    model_class = getattr(import_module(f"tasks.{task}.module"), MODULES[task])
    datasets = import_module(f"tasks.{task}.__main__").DATASETS
    args = ["validate", *(word for file in configs for word in ("--config", file)), *options]
    # One process on whatever is here, however the run was spread.
    for name, value in (("accelerator", "auto"), ("devices", "1"), ("num_nodes", "1"), ("strategy", "auto")):
        args += [f"--trainer.{name}", value]
    return Built(task, model_class, datasets, [*args, "--ckpt_path", str(checkpoint)])


def _task_of(config: Path) -> str:
    """The task that a configuration is of: of the command in its first line, or of its folder's name."""
    words = command_of(config).split()
    named = words[2].removeprefix("tasks.") if len(words) > 2 else config.absolute().parent.name
    if named not in MODULES:
        raise UserError(f"--task: expected one of {', '.join(MODULES)}, as {config} does not tell")
    return named
