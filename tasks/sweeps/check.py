"""Check sweeps without a server: W&B's schema and proposals, and the task's own command line."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.sweeps.file import Sweep, choices, load_sweep


def check_sweep(path: Path) -> str:
    """Check one sweep, and say what was checked.

    Every value that the sweep can list, and both ends of every range, are parsed by the task.

    Raises:
        UserError: Something about it is wrong.
    """
    sweep = load_sweep(path)
    proposed = _first_of_wandb(sweep) if find_spec("sweeps") else None
    lines = [sweep.arguments(values) for values in _corners(sweep)]
    if proposed is not None:
        lines.append([*sweep.fixed, *proposed])
    for line in lines:
        _parse(sweep, line)
    engine = "W&B's schema and first proposal" if proposed is not None else "without W&B's schema"
    return f"{path}: {sweep.method} over {', '.join(sweep.parameters)}: {len(lines)} command lines, {engine}"


def _first_of_wandb(sweep: Sweep) -> list[str]:
    """Arguments of the first run, as W&B's engine proposes and its agent writes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the engine's use of pydantic
        from sweeps.config import schema_violations_from_proposed_config
        from sweeps.run import next_run
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    violations = schema_violations_from_proposed_config(sweep.tree)
    if violations:
        raise UserError(f"{sweep.path}: W&B refuses it: {'; '.join(violations)}")
    run = next_run(sweep.tree, [])
    if run is None:
        raise UserError(f"{sweep.path}: W&B proposes no run")
    written: list[str] = create_sweep_command_args({"args": run.config})["args"]
    return written


def _corners(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Every listed value and every end of a range once, the other parameters at their first."""
    ends = {name: _ends(rule) for name, rule in sweep.parameters.items()}
    first = {name: values[0] for name, values in ends.items() if values}
    yield first
    for name, values in ends.items():
        for value in values[1:]:
            yield {**first, name: value}


def _ends(rule: Mapping[str, Any]) -> list[Any]:
    listed = choices(rule)
    return [rule[end] for end in ("min", "max") if end in rule] if listed is None else listed


def _parse(sweep: Sweep, line: list[str]) -> None:
    """Let the task parse a command line, without running it."""
    try:
        main = import_module(f"tasks.{sweep.task}.__main__").main
    except ModuleNotFoundError as error:
        raise UserError(f"{sweep.path}: command: there is no task {sweep.task!r}") from error
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            main([*line, "--print_config"])
    except SystemExit as end:
        if not end.code:
            return
    complaint = said.getvalue().strip().rpartition("\n")[2].removeprefix("error: ")
    raise UserError(f"{sweep.path}: {complaint}")
