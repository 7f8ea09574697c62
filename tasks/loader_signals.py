"""Loader processes that outlive a signal to the whole group of the training process, which needs them yet."""

from __future__ import annotations

import os
import signal
import threading


def outlive_signals(worker: int) -> None:
    """Let this loader process end by its parent alone: the `worker_init_fn` of the loaders.

    torchrun and SLURM signal whole groups of processes. A loader that died of it would take the training
    process with it, before that has finished its step and saved.

    Args:
        worker: Its number.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    # A handler would not be told who sent the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Leave, as torch's own handler does, once the parent sends SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        continue
    os._exit(0)
