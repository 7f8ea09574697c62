"""The options that all tasks share, and how their command line is read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from tasks.data import BaseDataModule
from tasks.errors import UserError
from tasks.loggers import WandbOptions
from tasks.parsing import ParserError, explain, explain_reference, with_bracketed_lists
from tasks.preflight import top_level_value


def data_class(datasets: Mapping[str, str], command_line: list[str]) -> type[BaseDataModule]:
    """The data module that the command line chooses, see `tasks.cli.run`."""
    default = next(iter(datasets))
    name = top_level_value("dataset", command_line, default)
    # An unknown name is for the parser to refuse, which knows the choices.
    room, _, kind = datasets.get(name, datasets[default]).partition(":")
    found: type[BaseDataModule] = getattr(import_module(room), kind)
    return found


class CommandLine(LightningCLI):
    """The part of LightningCLI that reads a command line.

    Attributes:
        command_line: What is read, without the program's name.
        datasets: Name of each data set, the default first, and its data module.
    """

    command_line: list[str]
    datasets: Mapping[str, str]

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, each with the trainer's arguments that are not options here."""
        # What to load is said by --resume in fit; checkpoints are never unpickled as code.
        data = {"dataloaders", "datamodule", "model", "weights_only", "verbose"}
        return {
            "fit": {
                "model",
                "train_dataloaders",
                "val_dataloaders",
                "datamodule",
                "weights_only",
                "ckpt_path",
            },
            "validate": data,
            "test": data,
            "predict": data - {"verbose"} | {"return_predictions"},
        }

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options that come before the trainer's."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of all random numbers.")
        parser.add_argument(
            "--base", type=list[str], default=[], help="Files that a configuration builds on."
        )
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run.")
        parser.add_argument(
            "--dataset",
            type=Literal[tuple(self.datasets)],
            default=next(iter(self.datasets)),
            help="Data set; the options under data are its own.",
        )
        parser.add_argument(
            "--threads", type=int | None, default=None,
            help="CPU threads of a process; small networks are faster with one. None for PyTorch's choice.",
        )  # fmt: skip
        parser.add_argument("--runs_dir", type=str, default="runs", help="Parent of the run folders.")
        parser.add_argument("--wandb", type=WandbOptions, default=WandbOptions())
        parser.add_argument(
            "--tensorboard", type=bool, default=False, help="Write TensorBoard's events as well."
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Values that the parts take from each other."""
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument(
                "--resume",
                type=str | None,
                default=None,
                help="Checkpoint to go on from; 'auto' takes the newest run of this name, if there is one.",
            )
            parser.add_argument(
                "--test", type=bool, default=False, help="Test the best checkpoint after fit."
            )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with the parser's complaint condensed to one line."""
        subcommand = self._subcommand_parsers.get(self.command_line[0] if self.command_line else "", parser)
        try:
            super().parse_arguments(parser, with_bracketed_lists(args, subcommand))
        except OmegaConfBaseException as error:  # ${…} that leads nowhere
            raise explain_reference(error, self.command_line) from error
        except ParserError as error:
            raise explain(str(error), subcommand, self.command_line) from error
        options = self.config[self.config.subcommand]
        if not 0 <= options.seed_everything < 2**32:
            raise UserError(
                f"seed_everything: expected a number from 0 to 2³² − 1, got {options.seed_everything}"
            )
        if options.threads is not None and options.threads < 1:
            raise UserError(f"threads: expected a positive number, got {options.threads}")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as given: Lightning would let the checkpoint's override it unsaid."""
