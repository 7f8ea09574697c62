"""The rules of a W&B sweep in Optuna's terms."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError
from tasks.sweeps.file import Sweep, choices

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


def sampler_of(sweep: Sweep) -> BaseSampler:
    """What chooses the values."""
    from optuna import samplers

    if sweep.method == "grid":
        space = {name: _texts(rule) for name, rule in sweep.parameters.items()}
        return samplers.GridSampler(space, seed=0)
    return samplers.TPESampler(seed=0) if sweep.method == "bayes" else samplers.RandomSampler(seed=0)


def pruner_of(sweep: Sweep) -> BasePruner:
    """Hyperband with the rungs that the file names: `min_iter`, or `max_iter` halved `s` times."""
    from optuna import pruners

    rule = sweep.tree.get("early_terminate")
    if rule is None:
        return pruners.NopPruner()
    if rule.get("type") != "hyperband":
        raise UserError(f"{sweep.path}: early_terminate.type: expected hyperband, got {rule.get('type')!r}")
    eta, most = int(rule.get("eta", 3)), rule.get("max_iter")
    least = rule.get("min_iter")
    if least is None and most is None:
        raise UserError(f"{sweep.path}: early_terminate: expected min_iter, or max_iter and s, got neither")
    least = max(int(most) // eta ** int(rule.get("s", 1)), 1) if least is None else int(least)
    return pruners.HyperbandPruner(
        min_resource=least, max_resource="auto" if most is None else int(most), reduction_factor=eta
    )


def grid_size(sweep: Sweep) -> int | None:
    """Number of runs of a grid; None for the other methods."""
    return prod(len(_texts(rule)) for rule in sweep.parameters.values()) if sweep.method == "grid" else None


def _texts(rule: Mapping[str, Any]) -> list[str]:
    """Listed values as they are written on the command line, which Optuna can keep whatever their type."""
    return [str(value) for value in choices(rule) or ()]


def suggest(trial: Trial, sweep: Sweep, name: str) -> Any:
    """The value of one parameter in a run.

    Raises:
        UserError: Optuna has no distribution like the file's.
    """
    rule = sweep.parameters[name]
    if choices(rule) is not None:
        return trial.suggest_categorical(name, _texts(rule))
    low, high = rule.get("min"), rule.get("max")
    whole = isinstance(low, int) and isinstance(high, int)
    kind = rule.get("distribution", "int_uniform" if whole else "uniform")
    if low is not None and high is not None:
        if kind == "int_uniform":
            return trial.suggest_int(name, int(low), int(high))
        if kind in ("uniform", "log_uniform_values"):
            return trial.suggest_float(name, low, high, log=kind != "uniform")
        if kind == "q_uniform":
            return trial.suggest_float(name, low, high, step=rule.get("q", 1))
    raise UserError(
        f"{sweep.path}: parameters.{name}: expected values, uniform, int_uniform, q_uniform or "
        f"log_uniform_values with min and max to run it here, got {rule}"
    )
