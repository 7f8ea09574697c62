"""Runs as processes of their own, several at a time: started, watched, tried again, ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.compare.display import Display, Progress
from tasks.compare.plan import Comparison, Run
from tasks.compare.results import FINISHED, read_result
from tasks.errors import BAD_INPUT, UserError

ATTEMPTS = 2
"""Times that a run is tried before it counts as failed."""
TAIL = 12
"""Lines of a failed run's log that are shown."""
_POLL_SECONDS = 0.5
_PATIENCE = 60
_LONGEST = 400
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    log: Path
    begin: int  # of what this attempt has said in the log


@dataclass
class Pool:
    """The runs of a comparison that are not finished yet.

    Args:
        comparison: What is compared.
        jobs: Runs at a time.
        threads: CPU threads of each.
        lock: Descriptor of the comparison's lock, which the runs hold too.
        display: Where the progress is shown.

    Attributes:
        failed: What each run that has failed said last.
    """

    comparison: Comparison
    jobs: int
    threads: int
    lock: int
    display: Display
    failed: dict[Run, str] = field(default_factory=dict)
    _children: list[_Child] = field(default_factory=list)
    _attempts: Counter[Run] = field(default_factory=Counter)

    def run(self, runs: Sequence[Run]) -> None:
        """Run them all.

        Raises:
            UserError: A run refuses its input; the others are stopped.
            KeyboardInterrupt: After the runs were stopped.
        """
        waiting = deque(runs)
        try:
            while waiting or self._children:
                while waiting and len(self._children) < self.jobs:
                    self._start(waiting.popleft())
                time.sleep(_POLL_SECONDS)
                for child in list(self._children):
                    if self._look_at(child):
                        waiting.appendleft(child.run)
        finally:
            self._stop()

    def _start(self, run: Run) -> None:
        folder = self.comparison.folder_of(run)
        if folder.path.is_dir() and not (folder.last.is_file() or folder.best.is_file()):
            shutil.rmtree(folder.path)  # of a run that left nothing to go on from: the name is free again
        log = self.comparison.log_of(run)
        line = [sys.executable, "-m", f"tasks.{self.comparison.task}", *self.comparison.arguments(run)]
        line += ["--resume", "auto"]
        with log.open("ab") as file:
            begin = file.tell()
            process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(self.threads))},
                pass_fds=(self.lock,),
                start_new_session=True,  # Ctrl-C reaches the comparison alone, which then ends them
            )
        self._attempts[run] += 1
        self._children.append(_Child(run, process, log, begin))
        self.display.show(run, Progress("running", *self._progress(run)))

    def _look_at(self, child: _Child) -> bool:
        """Show how far a run is; True where it has failed and is to be tried again."""
        code, run = child.process.poll(), child.run
        if code is None:
            self.display.show(run, Progress("running", *self._progress(run)))
            return False
        self._children.remove(child)
        if code == 0 and read_result(self.comparison, run).state == FINISHED:
            self.display.show(run, Progress("finished", *self._progress(run)))
            return False
        said = _tail(child)
        if code == BAD_INPUT:
            complaint = next((line for line in reversed(said) if line.startswith("error: ")), said[-1])
            raise UserError(f"{run.name}: {complaint.removeprefix('error: ')}")
        told = _ending(code)
        if self._attempts[run] < ATTEMPTS:
            self.display.say(f"{run.name}: {told}, tried once more ({child.log})")
            return True
        self.failed[run] = "\n".join([told, *said])
        self.display.show(run, Progress("failed", *self._progress(run)))
        self.display.say("\n".join([f"{run.name}: {told}; its log {child.log} ends with", *said]))
        return False

    def _progress(self, run: Run) -> tuple[int, str, float | None]:
        result = read_result(self.comparison, run)
        done = max((round(epoch) for epoch in result.curve.epochs), default=0)
        return done, result.monitor, result.last

    def _stop(self) -> None:
        """SIGTERM to the runs, which then save where they stand; kill what does not end."""
        running = [child for child in self._children if child.process.poll() is None]
        if running:
            self.display.say(f"stopping {len(running)} runs, which save where they stand …")
        for child in running:
            child.process.terminate()
        deadline = time.monotonic() + _PATIENCE
        try:
            for child in self._children:
                child.process.wait(timeout=max(deadline - time.monotonic(), 0))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # Ctrl-C again: without patience
            pass
        finally:
            for child in self._children:
                if child.process.poll() is None:
                    os.killpg(child.process.pid, signal.SIGKILL)
                child.process.wait()
                self.display.show(child.run, Progress("stopped", *self._progress(child.run)))
            self._children.clear()


def _tail(child: _Child) -> list[str]:
    """The last lines that an attempt has said."""
    with child.log.open("rb") as file:
        file.seek(child.begin)
        text = file.read().decode(errors="replace")
    lines = [line.rstrip()[:_LONGEST] for line in text.splitlines() if line.strip()]
    return lines[-TAIL:] or ["(it has said nothing)"]


def _ending(code: int) -> str:
    if code == 0:
        return "ended without a test result"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
