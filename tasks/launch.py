"""`python -m tasks.launch [options] <task> fit …`: several processes, on one or more machines, by torchrun.

torchrun's agents start the processes of their machine, and start all of them again when one dies or a machine
comes back; see docs/scaling.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tasks.arguments import LineParser, at_least
from tasks.errors import INTERRUPTED, UserError, one_line_errors

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # handed on to the processes


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The options of the launch, and the command line of the task.

    Raises:
        UserError: A wrong or a missing one.
    """
    number, positive = partial(at_least, 0), partial(at_least, 1)
    parser = LineParser(prog="launch", description=__doc__, allow_abbrev=False)
    parser.add_argument("--processes", type=positive, default=1, help="on each machine: one a GPU")
    parser.add_argument("--nodes", type=positive, default=1, help="machines")
    parser.add_argument("--node_rank", type=number, default=0, help="this machine; all meet at 0")
    parser.add_argument("--master_addr", default="", help="address of machine 0")
    parser.add_argument("--master_port", type=positive, default=29400, help="a free port of machine 0")
    parser.add_argument("--local_addr", help="address of this machine, if its host name is none")
    parser.add_argument("--id", help="name of the launch on all machines; default: address and port")
    parser.add_argument(
        "--max_restarts", type=number, default=3, help="times to start failed processes again"
    )
    parser.add_argument("--timeout", type=positive, default=600, help="seconds to wait for other machines")
    parser.add_argument("task", nargs=argparse.REMAINDER, help="classification fit --config …")
    options = parser.parse_args(args)
    if not options.task:
        raise UserError("launch: expected a task and its command line, got none")
    if options.nodes > 1 and not options.master_addr:
        raise UserError(f"launch: expected MASTER_ADDR, address of machine 0 of {options.nodes}, got none")
    if options.node_rank >= options.nodes:
        raise UserError(f"launch: expected NODE_RANK below {options.nodes}, got {options.node_rank}")
    return options


def torchrun_arguments(options: argparse.Namespace) -> list[str]:
    """The same as torchrun's arguments."""
    arguments = [
        f"--nnodes={options.nodes}",
        f"--nproc-per-node={options.processes}",
        f"--max-restarts={options.max_restarts}",
        f"--signals-to-handle={_SIGNALS}",
        "--monitor-interval=0.5",
    ]
    if options.nodes == 1:
        arguments.append("--standalone")
    else:
        place = f"{options.master_addr}:{options.master_port}"
        hosting = int(options.node_rank == 0)  # torchrun's own guess is by the host's name
        waiting = f"join_timeout={options.timeout},read_timeout={options.timeout}"
        arguments += [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={place}",
            f"--rdzv-id={options.id or place}",
            f"--rdzv-conf=is_host={hosting},{waiting}",
        ]
        arguments += [f"--local-addr={options.local_addr}"] if options.local_addr else []
    task, *rest = options.task
    return [*arguments, "-m", f"tasks.{task}", *rest]


@contextmanager
def one_line_ends(options: argparse.Namespace) -> Iterator[None]:
    """Say in one line how a launch ended that did not end well.

    Raises:
        UserError: The machines did not meet.
        SystemExit: The processes failed, or a signal came.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import (
        RendezvousClosedError,
        RendezvousConnectionError,
        RendezvousTimeoutError,
    )

    me = f"machine {options.node_rank} of {options.nodes}"
    place = f"{options.master_addr}:{options.master_port}"
    try:
        yield
    except RendezvousTimeoutError as error:
        raise UserError(f"{me}: the others did not come to {place} within {options.timeout} s") from error
    except RendezvousConnectionError as error:
        raise UserError(f"{me}: machine 0 does not answer at {place}") from error
    except DistError as error:
        raise UserError(f"{me}: the others do not answer ({str(error).partition(chr(10))[0]})") from error
    except RendezvousClosedError as error:
        raise UserError(f"{me}: another machine has ended the launch") from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = (
            f"was killed by {failure.signal_name()}"
            if failure.exitcode < 0
            else f"left with {failure.exitcode}"
        )
        again = f" after {options.max_restarts} restarts" if options.max_restarts else ""
        print(f"error: {me}: process {rank} {how}{again}", file=sys.stderr)
        raise SystemExit(max(failure.exitcode, 1)) from None
    except SignalException as error:
        number = signal.Signals(error.sigval)
        print(f"{me}: stopped by {number.name}", file=sys.stderr)
        raise SystemExit(INTERRUPTED if number == signal.SIGINT else 128 + number) from None


def main(args: Sequence[str] | None = None) -> None:
    """Launch a task."""
    with one_line_errors():
        options = parse(sys.argv[1:] if args is None else args)
        # Threads of one process on its share of the cores; torchrun takes one, and says so at length.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.processes)))
        # With the store shared, an agent keeps the address of the first round, which one that comes back
        # never hears of: both wait until the timeout.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        # Seconds to finish the step and a validation, and to save, after a signal; torchrun kills after 30.
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "100")
        from torch.distributed.run import parse_args, run

        with one_line_ends(options):
            run(parse_args(torchrun_arguments(options)))  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
