"""The command line that all tasks share: LightningCLI with run folders, resume and one-line errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback

from tasks import callbacks, checkpoint
from tasks.base import BaseModule
from tasks.command_line import CommandLine, data_class
from tasks.data import BaseDataModule
from tasks.errors import UserError
from tasks.loggers import RunRecord, build_loggers
from tasks.parsing import StrictParser
from tasks.preemption import StopOnSignal
from tasks.preflight import config_files, is_first_process, with_bases, with_options_of_norm
from tasks.quiet import quiet_lightning
from tasks.ratio_monitor import RatioMonitor
from tasks.report.meter import Meter
from tasks.resume import SameStart, find_start
from tasks.run_folder import RunFolder, evaluated_checkpoint
from tasks.session import Session, command
from tasks.world import launched, run_plugins, trainer_arguments


def run(
    task: str, model_class: type[BaseModule], datasets: Mapping[str, str], args: Sequence[str]
) -> ExperimentCLI:
    """Parse the command line of a task and do what it says.

    Args:
        task: Name of the task.
        model_class: The task's module.
        datasets: Name of each data set, the default first, and its data module: "package.room:Class".
        args: Command line without the program's name.

    Raises:
        UserError: Anything about the input that is wrong, before training starts.
        SystemExit: With code 130 after Ctrl-C.
    """
    quiet_lightning()
    # W&B's agent adds it where a sweep goes on after a preemption.
    args = [arg for arg in args if not arg.startswith("--_wandb=")]
    return ExperimentCLI(task, model_class, datasets, args)


class ExperimentCLI(CommandLine):
    """LightningCLI of one task: `fit`, `validate`, `test` and `predict`.

    The data set is chosen by name, before the parser is built: the options under `data` are then those of
    one class, checked and explained as flat keys.

    Args:
        task: Name of the task; its runs lie in `<runs_dir>/<task>/`.
        model_class: The task's module.
        datasets: See `run`.
        args: Command line without the program's name.
    """

    def __init__(
        self, task: str, model_class: type[BaseModule], datasets: Mapping[str, str], args: Sequence[str]
    ) -> None:
        self.task, self.command_line, self.datasets = task, list(args), datasets
        self.folder: RunFolder | None = None
        self.begun: RunFolder | None = None  # the folder that a resumed run goes on in
        self.launch: str | None = None
        self.checkpoint: Path | None = None
        self.loaded: dict[str, Any] | None = None
        super().__init__(
            model_class,
            data_class(datasets, self.command_line),
            save_config_callback=callbacks.SaveConfig,
            parser_class=StrictParser,
            parser_kwargs={"parser_mode": "omegaconf"},  # ${…} in configuration files
            trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
            seed_everything_default=0,
            args=with_options_of_norm(with_bases(self.command_line)),
            auto_configure_optimizers=False,
        )

    # --- building

    @property
    def options(self) -> Any:
        """Configuration of the subcommand."""
        return self.config[self.config.subcommand]

    @property
    def run_name(self) -> str:
        """`--name`, or the stem of the first configuration file."""
        named = [file.path.stem for file in config_files(self.command_line) if file.named]
        return self.options.name or (named[0] if named else self.task)

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint that is asked for."""
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        if self.config.subcommand != "fit":
            if self.options.ckpt_path is None:
                raise UserError(f"{self.config.subcommand}: expected --ckpt_path <checkpoint file>, got none")
            self.checkpoint = evaluated_checkpoint(str(self.options.ckpt_path))
            self.loaded = checkpoint.read_checkpoint(self.checkpoint)
        else:
            world = launched()
            self.launch = world.launch if world else None
            self.begun, found = find_start(self._task_folder, self.run_name, self.options.resume, self.launch)
            self.checkpoint, self.loaded = found or (None, None)
        if self.loaded:
            for key in ("weights", "encoder_weights"):
                if key in self.options.model:
                    self.options.model[key] = None  # they would be replaced by the checkpoint's

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a value that one of them refuses is the user's to correct."""
        try:
            super().instantiate_classes()
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer, with the run folder, loggers and callbacks of the subcommand."""
        if self.checkpoint and self.loaded:
            checkpoint.check_architecture(self.checkpoint, self.loaded, self.model)
            checkpoint.check_classes(self.checkpoint, self.loaded, self.datamodule)
            self.datamodule.first_epoch = checkpoint.epochs_done(self.loaded)
            self.datamodule.first_batch = checkpoint.batches_done(self.loaded)
        if self.options.trainer.overfit_batches:
            raise UserError("trainer.overfit_batches: not supported, use trainer.limit_train_batches")
        kwargs |= trainer_arguments(self.options.trainer)
        extra: list[Callback] = []
        if self.options.trainer.enable_progress_bar is not False:
            extra.append(callbacks.progress_bar())
            kwargs["enable_progress_bar"] = not isinstance(extra[0], callbacks.EpochLines)
        kwargs["logger"] = False
        if self.options.trainer.sync_batchnorm:
            # Lightning's own would convert PyTorch's BatchNorm and pass over the family's layers.
            self.model.sync = True
            kwargs["sync_batchnorm"] = False
        self.trainer_defaults["callbacks"] = extra
        if self.subcommand == "predict":
            extra.append(self.model.prediction_writer(self._checkpoint_folder()))
        if self.subcommand != "fit":
            self.model.output_folder = self._checkpoint_folder()
            self.datamodule.unreadable_log = self.model.output_folder / "unreadable.txt"
            self.save_config_callback = None
            kwargs["enable_checkpointing"] = False
            return super().instantiate_trainer(**kwargs)
        if not self.options.trainer.fast_dev_run and is_first_process():
            self.folder = self._run_folder()
        try:
            return self._fit_trainer(extra, kwargs)
        except (ValueError, ImportError, MisconfigurationException) as error:
            if self.folder:
                self.folder.release()
            raise UserError(f"trainer: {error}") from error

    def _fit_trainer(self, extra: list[Callback], kwargs: dict[str, Any]) -> pl.Trainer:
        trainer_options = self.options.trainer
        if not trainer_options.fast_dev_run:
            extra += [Meter(), RatioMonitor(self.folder.path if self.folder else None)]
            extra += callbacks.checkpoint_callbacks(self.folder, self.model.monitor, self.model.monitor_mode)
        last = self.folder.last if self.folder else None
        extra.append(StopOnSignal(last, self.model.resumes_within_epoch))
        extra.append(SameStart(self.checkpoint, self.loaded))
        if self.folder:
            kwargs["default_root_dir"] = self.model.output_folder = self.folder.path
            self.datamodule.unreadable_log = self.folder.path / "unreadable.txt"
            extra.append(RunRecord(self.folder))
        self.save_config_kwargs = {"folder": self.folder, "header": command(self.task, self.command_line)}
        kwargs["plugins"] = [*self._plugins(), *run_plugins()]
        trainer = super().instantiate_trainer(**kwargs)
        if not checkpoint.is_finished(self.loaded, trainer.max_epochs) and not trainer_options.fast_dev_run:
            resumed_step = self.loaded["global_step"] if self.loaded else None
            trainer.loggers = build_loggers(
                self.folder, self.options.wandb, resumed_step, self.options.tensorboard
            )
        if self.folder:
            self.folder.begin(self.launch)
        return trainer

    def _plugins(self) -> list[Any]:
        """The plugins that the configuration names."""
        plugins = self._get(self.config_init, "trainer", default={}).get("plugins") or []
        return plugins if isinstance(plugins, list) else [plugins]

    def _run_folder(self) -> RunFolder:
        return self.begun or RunFolder.claim(self._task_folder, self.run_name)

    @property
    def _task_folder(self) -> Path:
        """Folder of the task's runs."""
        return Path(self.options.runs_dir) / self.task

    def _checkpoint_folder(self) -> Path:
        """Folder of the checkpoint's run, else the checkpoint's own."""
        assert self.checkpoint is not None
        folder = RunFolder.of_checkpoint(self.checkpoint)
        return folder.path if folder else self.checkpoint.parent

    # --- running: LightningCLI calls the method that bears the subcommand's name

    def fit(self, model: BaseModule, datamodule: BaseDataModule) -> None:
        """Train, and test the best checkpoint where --test asks for it."""
        self._session(model, datamodule).fit(test=self.options.test)

    def validate(self, model: BaseModule, datamodule: BaseDataModule, ckpt_path: str) -> None:
        """Metrics of a checkpoint on the validation split."""
        self._session(model, datamodule).evaluate("validate")

    def test(self, model: BaseModule, datamodule: BaseDataModule, ckpt_path: str) -> None:
        """Metrics of a checkpoint on the test split."""
        self._session(model, datamodule).evaluate("test")

    def predict(self, model: BaseModule, datamodule: BaseDataModule, ckpt_path: str) -> None:
        """Write a checkpoint's predictions into the folder of its run."""
        self._session(model, datamodule).predict()

    def _session(self, model: BaseModule, datamodule: BaseDataModule) -> Session:
        return Session(
            task=self.task,
            args=self.command_line,
            trainer=self.trainer,
            model=model,
            datamodule=datamodule,
            checkpoint=self.checkpoint,
            loaded=self.loaded,
            folder=self.folder,
        )
