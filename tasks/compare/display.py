"""How far the runs of a comparison are: a line a run on a terminal, lines one after the other elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from tasks.compare.plan import Run
from tasks.report.colors import norm_color
from tasks.report.table import fraction


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        state: "waiting", "running", "finished", "failed" or "stopped".
        epochs: Finished epochs.
        metric: Name of the validation metric.
        value: Its last value.
    """

    state: str
    epochs: int = 0
    metric: str = ""
    value: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the run is not started again."""
        return self.state in ("finished", "failed")

    @property
    def told(self) -> str:
        """The metric in words."""
        return "" if self.value is None else f"{self.metric} {fraction(self.value)}"


class Display(Protocol):
    """What shows the progress."""

    def show(self, run: Run, progress: Progress) -> None:
        """Show how far a run is."""

    def say(self, text: str) -> None:
        """Show lines that stay."""


class Lines:
    """A line at each event.

    Args:
        runs: All runs.
        epochs: Epochs of each; None where it is not known.
    """

    def __init__(self, runs: Sequence[Run], epochs: int | None) -> None:
        self.states = dict.fromkeys(runs, Progress("waiting"))
        self.epochs = epochs

    def show(self, run: Run, progress: Progress) -> None:
        """Print where something has changed."""
        if progress == self.states[run]:
            return
        self.states[run] = progress
        ended = sum(other.is_over for other in self.states.values())
        epoch = f"epoch {progress.epochs}/{self.epochs or '?'}"
        line = f"[{ended}/{len(self.states)}] {run.norm} seed {run.seed}: {progress.state}  {epoch}"
        self.say(f"{line}  {progress.told}".rstrip())

    def say(self, text: str) -> None:
        """Print it."""
        print(text, flush=True)


class Table:
    """A line with a bar for each run, and one for all, drawn anew in place.

    Where the terminal is too low for all of them, those that run are shown.
    """

    def __init__(self, runs: Sequence[Run], epochs: int | None, console: Console) -> None:
        self.console, self.epochs = console, epochs
        self.all_fit = len(runs) + 3 <= console.height
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[epoch]}"),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.places: dict[Run, TaskID] = {run: self._line(run) for run in runs}
        self.shown: dict[Run, Progress] = dict.fromkeys(runs, Progress("waiting"))
        total = len(runs) * (epochs or 1)
        self.whole = self.bars.add_task("[bold]all runs", total=total, epoch=f"0/{len(runs)} runs", told="")

    def _line(self, run: Run) -> TaskID:
        text = f"[{norm_color(run.norm)}]■[/] {escape(run.norm)} seed {run.seed}"
        return self.bars.add_task(
            text, start=False, total=self.epochs or 1, epoch="", told="waiting", visible=self.all_fit
        )

    def show(self, run: Run, progress: Progress) -> None:
        """Draw the run's line and that of all."""
        before, place = self.shown[run], self.places[run]
        if progress.state == "running" and before.state != "running":
            self.bars.start_task(place)
        ended = progress.is_over or progress.state == "stopped"
        self.bars.update(
            place,
            completed=(self.epochs or 1) if progress.state == "finished" else progress.epochs,
            epoch=f"epoch {progress.epochs}/{self.epochs or '?'}",
            told=f"{progress.told}{f'  {progress.state}' if ended else ''}",
            visible=self.all_fit or not ended,
        )
        if ended:
            self.bars.stop_task(place)
        self.shown[run] = progress
        over = sum(other.is_over for other in self.shown.values())
        each = self.epochs or 1
        done = sum(each if p.is_over else min(p.epochs, self.epochs or 0) for p in self.shown.values())
        self.bars.update(self.whole, completed=done, epoch=f"{over}/{len(self.shown)} runs")

    def say(self, text: str) -> None:
        """Print above the lines."""
        self.console.print(text, markup=False, highlight=False)


@contextmanager
def display(runs: Sequence[Run], epochs: int | None) -> Iterator[Display]:
    """Bars on a terminal, lines elsewhere."""
    console = Console()
    if not console.is_terminal:
        yield Lines(runs, epochs)
        return
    table = Table(runs, epochs, console)
    with Live(table.bars, console=console, refresh_per_second=4):
        yield table
