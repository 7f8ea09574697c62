"""What a comparison runs: a command line of the task for each normalizer and seed."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError
from tasks.preflight import where_set
from tasks.run_folder import RunFolder

# Said by --norms, --seeds, --runs_dir and --name of the comparison, or by the comparison itself.
_OWN = {
    "--model.norm": "use --norms",
    "--seed_everything": "use --seeds",
    "--data.seed": "use --seeds",
    "--resume": "what is unfinished goes on by itself",
    "--test": "every run is tested",
    "--ckpt_path": "every run starts anew",
    "--print_config": "use it with the task",
}
# They say where a run lies and not what it is.
_PLACES = ("name", "runs_dir", "resume", "test", "base")


@dataclass(frozen=True)
class Run:
    """One training: a normalizer and a seed."""

    norm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder and its log."""
        return f"{self.norm}-seed{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where.

    Attributes:
        task: Name of the task.
        configs: Configuration files, which all runs share.
        norms: Normalizers; the others are compared with the first.
        seeds: Seeds of each.
        options: Further options of the task's command line.
        folder: Folder of the comparison, which holds the run folders too.
    """

    task: str
    configs: tuple[str, ...]
    norms: tuple[str, ...]
    seeds: tuple[int, ...]
    options: tuple[str, ...]
    folder: Path

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed: what is there after an interruption can be paired."""
        return [Run(norm, seed) for seed in self.seeds for norm in self.norms]

    @property
    def command(self) -> str:
        """The command line that makes this comparison, wherever it lies."""
        words = ["python", "-m", "tasks.compare", "--task", self.task]
        words += [word for path in self.configs for word in ("--config", path)]
        words += ["--norms", *self.norms, "--seeds", *map(str, self.seeds), *self.options]
        return shlex.join(words)

    def folder_of(self, run: Run) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.folder / self.task / run.name)

    def log_of(self, run: Run) -> Path:
        """The file that takes what the run says."""
        return self.folder / "logs" / f"{run.name}.log"

    def arguments(self, run: Run) -> list[str]:
        """The run's command line, without the program's name."""
        given = ["fit", *(word for path in self.configs for word in ("--config", path)), *self.options]
        # Unless they are said: a thread a run, as many run at once, and no record beside metrics.csv.
        defaults = {"threads": "1", "wandb.mode": "disabled"}
        added = [word for key, value in defaults.items() if not where_set(key, given)
                 for word in (f"--{key}", value)]  # fmt: skip
        own = {
            "model.norm": run.norm,
            "seed_everything": run.seed,
            "name": run.name,
            "runs_dir": self.folder,
            "test": "true",
        }
        return [*given, *added, *(str(word) for key, value in own.items() for word in (f"--{key}", value))]

    @cached_property
    def configurations(self) -> dict[str, dict[str, Any]]:
        """The whole configuration of each normalizer's runs, at the first seed, as the task parses it.

        Raises:
            UserError: The task refuses the command line.
        """
        return {norm: _parsed(self.task, self.arguments(Run(norm, self.seeds[0]))) for norm in self.norms}

    def configuration(self, run: Run) -> dict[str, Any]:
        """The whole configuration of a run."""
        return {**self.configurations[run.norm], "seed_everything": run.seed}

    def check_options(self) -> None:
        """Refuse options that the comparison sets itself.

        Raises:
            UserError: There is one.
        """
        for option in self.options:
            name = option.partition("=")[0]
            if name in _OWN:
                raise UserError(f"{name}: expected it to be left to the comparison: {_OWN[name]}")

    def check_same(self) -> None:
        """Refuse to go on where a run that is there was configured otherwise.

        Raises:
            UserError: There is one; the line names the first key that differs.
        """
        for run in self.runs:
            path = self.folder_of(run).config
            if not path.is_file():
                continue
            stored = yaml.safe_load(path.read_text(encoding="utf-8"))
            wanted = self.configuration(run)
            for key, before, now in differences(stored, wanted):
                raise UserError(
                    f"{path.parent} was run with another configuration: {key} was {before!r} and is now "
                    f"{now!r}; choose another --name, or remove that folder to run it again"
                )


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, stored, wanted) of what differs in two configurations, but for where the run lies."""
    flat = [dict(_flat(tree)) for tree in (stored, wanted)]
    for key in dict.fromkeys([*flat[0], *flat[1]]):
        before, now = (values.get(key) for values in flat)
        if before != now and key not in _PLACES:
            yield key, before, now


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _parsed(task: str, line: Sequence[str]) -> dict[str, Any]:
    """The configuration that a task makes of a command line."""
    main = import_module(f"tasks.{task}.__main__").main
    printed, said = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            main([*line, "--print_config"])
    except SystemExit as end:
        if not end.code:
            config: dict[str, Any] = yaml.safe_load(printed.getvalue())
            return config
    raise UserError(said.getvalue().strip().rpartition("\n")[2].removeprefix("error: "))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
