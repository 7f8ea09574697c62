"""The sweep of a file run on this machine, with Optuna in W&B's place."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError
from tasks.report.metrics import Curve, read_metrics
from tasks.sweeps.file import Sweep, load_sweep
from tasks.sweeps.outcome import show_outcome
from tasks.sweeps.search import grid_size, pruner_of, sampler_of, suggest

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

_RUN, _INTERRUPTED = "run", "interrupted"
_POLL_SECONDS = 1.0


class RunFailed(Exception):
    """A run of the sweep ended with an error; the sweep goes on."""


def run_locally(path: Path, count: int, runs_dir: Path) -> None:
    """Run a sweep up to `count` runs in all, then show their ranking.

    The value of a run is that of the metric when it ended, as for W&B. What was interrupted goes on.

    Args:
        path: File of the sweep.
        count: Runs, those of earlier calls included.
        runs_dir: Parent of the run folders; the sweep's own is `sweeps/<name>` in it.

    Raises:
        UserError: The sweep cannot work here.
    """
    import optuna

    sweep = load_sweep(path)
    if sweep.metric is None:
        raise UserError(f"{path}: metric: expected name and goal, which the ranking needs, got none")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = runs_dir / "sweeps" / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    study = _study(sweep, folder, runs_dir)
    remaining = count - _take_up(study)
    grid = grid_size(sweep)
    if grid is not None:
        remaining = min(remaining, grid - (count - remaining))
    runs = _Runs(sweep, runs_dir, folder, study.user_attrs["prefix"])
    try:
        if remaining > 0:
            study.optimize(runs, n_trials=remaining, catch=(RunFailed,))
    finally:
        show_outcome(study, sweep, folder, runs_dir)


def _study(sweep: Sweep, folder: Path, runs_dir: Path) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
        study_name=sweep.path.stem,
        sampler=sampler_of(sweep),
        pruner=pruner_of(sweep),
        direction="maximize" if sweep.maximized else "minimize",
        load_if_exists=True,
    )
    if "prefix" not in study.user_attrs:
        study.set_user_attr("prefix", _free_prefix(runs_dir / sweep.task, sweep.path.stem))
    return study


def _free_prefix(parent: Path, name: str) -> str:
    """A beginning of the runs' names that no earlier run has."""
    number, prefix = 1, f"{name}-sweep"
    while any(parent.glob(f"{prefix}-*")):
        number += 1
        prefix = f"{name}-sweep{number}"
    return prefix


def _take_up(study: Study) -> int:
    """Queue the runs that an earlier call left unfinished, and return the number of those that ended."""
    from optuna.trial import TrialState

    latest: dict[str, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.WAITING:  # queued, but not begun
            continue
        latest[trial.user_attrs.get(_RUN, f"{trial.number}")] = trial
    waiting = {trial.user_attrs.get(_RUN) for trial in study.get_trials(states=(TrialState.WAITING,))}
    ended = 0
    for run, trial in latest.items():
        was_cut = trial.state == TrialState.FAIL and trial.user_attrs.get(_INTERRUPTED)
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        elif not was_cut:
            ended += 1
            continue
        if run not in waiting:
            study.enqueue_trial(trial.params, user_attrs={_RUN: run})
    return ended


class _Runs:
    """The objective: runs the task once, as a process of its own, and returns its metric."""

    def __init__(self, sweep: Sweep, runs_dir: Path, folder: Path, prefix: str) -> None:
        self.sweep, self.runs_dir, self.folder, self.prefix = sweep, runs_dir, folder, prefix

    def __call__(self, trial: Trial) -> float:
        run = trial.user_attrs.get(_RUN, f"{self.prefix}-{trial.number}")
        trial.set_user_attr(_RUN, run)
        values = {name: suggest(trial, self.sweep, name) for name in self.sweep.parameters}
        told = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        print(f"{run}: {told}", flush=True)
        # A run that was interrupted goes on; another begins, as its name is new.
        own = ["--name", run, "--runs_dir", str(self.runs_dir), "--resume", "auto"]
        line = [sys.executable, "-m", f"tasks.{self.sweep.task}", *self.sweep.arguments(values), *own]
        log = self.folder / f"{run}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT)
        try:
            self._watch(trial, run, process)
        except KeyboardInterrupt:
            trial.set_user_attr(_INTERRUPTED, True)
            raise
        finally:
            _stop(process)
        found = self._curve(run)
        if process.returncode or not found.values:
            print(f"{run}: failed, see {log}", flush=True)
            raise RunFailed(run)
        return found.values[-1]

    def _watch(self, trial: Trial, run: str, process: subprocess.Popen[bytes]) -> None:
        """Tell Optuna every value of the metric as it comes, and end a run that it gives up."""
        import optuna

        told, running = 0, True
        while running:
            try:
                process.wait(timeout=_POLL_SECONDS)
                running = False
            except subprocess.TimeoutExpired:
                pass
            for value in self._curve(run).values[told:]:
                told += 1
                trial.report(value, told)
            if running and trial.should_prune():
                _stop(process)
                print(f"{run}: ended early after {told} values", flush=True)
                raise optuna.TrialPruned

    def _curve(self, run: str) -> Curve:
        path = self.runs_dir / self.sweep.task / run / "metrics.csv"
        return read_metrics(path).get(str(self.sweep.metric), Curve())


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C to a run that still goes, which leaves its checkpoint, then wait for it."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
