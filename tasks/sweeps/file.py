"""A sweep as written in a file for W&B, and what W&B accepts though it cannot work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError, close_matches

METHODS = ("grid", "random", "bayes")
_MAXIMIZE, _MINIMIZE = "maximize", "minimize"
_FORM = "${env}, python, -m, tasks.<task>, fit, --config, conf/….yaml, ${args}"
_COUNTED = ("values", "value")


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        path: Its file.
        tree: What the file holds.
        task: Name of the task.
        fixed: Arguments of the task's command line that all runs share.
    """

    path: Path
    tree: dict[str, Any]
    task: str
    fixed: list[str]

    @property
    def method(self) -> str:
        """How values are chosen."""
        return str(self.tree["method"])

    @property
    def metric(self) -> str | None:
        """The metric that is sought."""
        metric = self.tree.get("metric")
        return metric["name"] if metric else None

    @property
    def maximized(self) -> bool:
        """Whether more of it is better."""
        return bool(self.tree.get("metric", {}).get("goal") == _MAXIMIZE)

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """What varies: dotted option and the rule of its values."""
        found: dict[str, dict[str, Any]] = self.tree["parameters"]
        return found

    def arguments(self, values: Mapping[str, Any]) -> list[str]:
        """Command line of the task for one choice of values, written as W&B's agent writes it."""
        return [*self.fixed, *(f"--{name}={value}" for name, value in values.items())]


def choices(rule: Mapping[str, Any]) -> list[Any] | None:
    """The values that a rule lists; None for a range."""
    if "value" in rule:
        return [rule["value"]]
    return list(rule["values"]) if "values" in rule else None


def load_sweep(path: Path) -> Sweep:
    """Read and check a sweep.

    Raises:
        UserError: It cannot be read, or cannot work.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected a sweep in YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, got {type(tree).__name__}")
    try:
        _check_method(tree)
        _check_parameters(tree)
        task, fixed = _command(tree.get("command"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Sweep(path, tree, task, fixed)


def _check_method(tree: Mapping[str, Any]) -> None:
    method, metric = tree.get("method"), tree.get("metric")
    if method not in METHODS:
        hint = close_matches(str(method), METHODS)
        raise UserError(f"method: expected one of {', '.join(METHODS)}, got {method!r}{hint}")
    if metric is None and (method == "bayes" or "early_terminate" in tree):
        seeker = "bayes" if method == "bayes" else "early_terminate"
        raise UserError(f"metric: expected name and goal, which {seeker} needs, got none")
    if metric is not None:
        goals = (_MAXIMIZE, _MINIMIZE)
        if not isinstance(metric, dict) or not metric.get("name") or metric.get("goal") not in goals:
            raise UserError(f"metric: expected name and goal ({' or '.join(goals)}), got {metric!r}")


def _check_parameters(tree: Mapping[str, Any]) -> None:
    parameters = tree.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"parameters: expected options and their values, got {parameters!r}")
    for name, rule in parameters.items():
        place = f"parameters.{name}"
        if not isinstance(rule, dict):
            raise UserError(f"{place}: expected value, values or min and max, got {rule!r}")
        if "parameters" in rule:
            raise UserError(f"{place}: expected a dotted option such as model.lr, got nested parameters")
        listed = choices(rule)
        if listed is None:
            _check_range(place, rule, str(tree["method"]))
        elif not listed:
            raise UserError(f"{place}: expected at least one value, got none")
        elif None in listed:
            # W&B writes None on the command line.
            raise UserError(f'{place}: expected "null" in quotes, got null')


def _check_range(place: str, rule: Mapping[str, Any], method: str) -> None:
    if method == "grid":
        raise UserError(f"{place}: expected values, which a grid needs, got a range")
    if "distribution" in rule and "min" not in rule and "max" not in rule:
        return  # a normal distribution, say: W&B's schema knows which
    low, high = rule.get("min"), rule.get("max")
    is_range = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if low is None or high is None or not is_range or low >= high:
        raise UserError(f"{place}: expected min below max, got min {low!r} and max {high!r}")
    if rule.get("distribution") == "log_uniform_values" and low <= 0:
        raise UserError(f"{place}: expected a positive min, which log_uniform_values needs, got {low!r}")


def _command(command: Any) -> tuple[str, list[str]]:
    """The task and the arguments that its runs share, from the command of a sweep."""
    if not isinstance(command, list) or not all(isinstance(part, str) for part in command):
        raise UserError(f"command: expected the list [{_FORM}], got {command!r}")
    place = next((i for i, part in enumerate(command) if re.fullmatch(r"tasks\.\w+", part)), 0)
    is_module = place > 0 and command[place - 1] == "-m"
    if command[0] != "${env}" or not is_module or command[place + 1 : place + 2] != ["fit"]:
        raise UserError(f"command: expected the form [{_FORM}], got {command}")
    *fixed, last = command[place + 1 :]
    if last != "${args}" or any(part.startswith("${") for part in fixed):
        raise UserError(f"command: expected ${{args}} once, at its end, got {command}")
    return command[place].removeprefix("tasks."), fixed
