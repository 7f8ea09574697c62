"""What a sweep on this machine found: a ranking, and Optuna's plots."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.sweeps.file import Sweep
from tasks.tables import write_table

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

RANKING = "ranking.csv"
_SHOWN = 20
_UNBOUNDED = 10_000


def show_outcome(study: Study, sweep: Sweep, folder: Path, runs_dir: Path) -> None:
    """Print the best runs; write all of them to `ranking.csv`, and plots beside it.

    Args:
        study: The study.
        sweep: Its sweep.
        folder: Folder of the sweep.
        runs_dir: Parent of the run folders.
    """
    ranked = ranking(study, sweep)
    if not ranked:
        print("no run has ended yet", flush=True)
        return
    header = ["rank", str(sweep.metric), "state", *sweep.parameters, "run"]
    rows = [
        [place, trial.value, trial.state.name.lower(), *map(trial.params.get, sweep.parameters), _run(trial)]
        for place, trial in enumerate(ranked, start=1)
    ]
    write_table(folder / RANKING, header, rows)
    _print(f"{sweep.path.stem}: the best of {len(rows)} runs", header, rows[:_SHOWN])
    plots = _plots(study, folder)
    print(
        f"run folders: {runs_dir / sweep.task}; ranking and plots ({', '.join(plots)}): {folder}", flush=True
    )


def ranking(study: Study, sweep: Sweep) -> list[FrozenTrial]:
    """The runs that ended with a value, the best first; those that were ended early follow by their last."""
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = [trial for trial in study.get_trials(states=states) if trial.value is not None]
    sign = -1 if sweep.maximized else 1
    return sorted(trials, key=lambda t: (t.state == TrialState.PRUNED, sign * (t.value or 0.0), t.number))


def _run(trial: FrozenTrial) -> str:
    return str(trial.user_attrs["run"])


def _print(title: str, header: list[str], rows: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name.removeprefix("model."), no_wrap=True)
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    # A name folded into several lines cannot be copied: let it run on.
    needed = Console(width=_UNBOUNDED).measure(table).maximum
    Console(width=max(Console().width, needed)).print(table)


def _plots(study: Study, folder: Path) -> list[str]:
    """Write Optuna's plots as far as the runs allow them, and return the names of their files."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as drawings

    made = []
    builders = {
        "history": drawings.plot_optimization_history,
        "importances": drawings.plot_param_importances,
        "parallel": drawings.plot_parallel_coordinate,
        "slices": drawings.plot_slice,
        "curves": drawings.plot_intermediate_values,
    }
    for name, build in builders.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls these plots experimental
            try:
                build(study)
            except (ValueError, RuntimeError):  # too few runs, or all of them alike
                plt.close("all")
                continue
            plt.gcf().savefig(folder / f"{name}.png", dpi=144, bbox_inches="tight")
            plt.close("all")
        made.append(f"{name}.png")
    return made
