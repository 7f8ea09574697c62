"""The processes that a launcher started, as the environment tells it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from tasks.errors import UserError

_INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs that start nothing by themselves


@dataclass(frozen=True)
class World:
    """What was launched.

    Attributes:
        launcher: What started the processes.
        nodes: Number of machines.
        processes: Number of processes on each.
        launch: Name of the launch, the same when its processes are started again; None where it has none.
    """

    launcher: Literal["torchrun", "srun"]
    nodes: int
    processes: int
    launch: str | None

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.nodes * self.processes


def launched() -> World | None:
    """The world that this process is part of; None where no launcher started it.

    Raises:
        UserError: A SLURM job of several tasks whose processes were not started by srun, or unevenly.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        size, processes = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        name = environment["TORCHELASTIC_RUN_ID"]
        if name == "none":  # torchrun without --rdzv-id
            name = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        return World("torchrun", size // processes, processes, name)
    if "SLURM_NTASKS" not in environment or environment.get("SLURM_JOB_NAME") in _INTERACTIVE:
        return None
    tasks, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES", 1))
    if tasks > 1 and "SLURM_STEP_ID" not in environment:
        raise UserError(
            f"expected the {tasks} tasks of this SLURM job to be started by srun, got a process without it; "
            "conf/cluster/slurm.sh shows how"
        )
    if tasks > 1 and environment.get("SLURM_NTASKS_PER_NODE") != str(tasks // nodes):
        raise UserError(
            f"expected --ntasks-per-node {tasks // nodes} for {tasks} tasks on {nodes} nodes, "
            f"got {environment.get('SLURM_NTASKS_PER_NODE', 'none')}"
        )
    job = environment.get("SLURM_JOB_ID")
    return World("srun", nodes, tasks // nodes, f"slurm-{job}" if job else None)


def trainer_arguments(options: Any) -> dict[str, Any]:
    """The trainer's devices, nodes and strategy in the world that was launched.

    Args:
        options: The configured `trainer` section.

    Raises:
        UserError: It asks for other processes than there are, or for nodes that nobody launched.
    """
    world = launched()
    if world is None:
        if options.num_nodes > 1:
            raise UserError(
                f"trainer.num_nodes: expected a launcher that starts {options.num_nodes} nodes (make … "
                f"NODES={options.num_nodes}, torchrun or srun), got a process that was started by itself"
            )
        return {}
    if options.num_nodes not in (1, world.nodes):
        raise UserError(
            f"trainer.num_nodes: expected {world.nodes}, as {world.launcher} started, got {options.num_nodes}"
        )
    devices, count = options.devices, _count(options.devices)
    if count not in (None, 1, world.processes):
        raise UserError(
            f"trainer.devices: expected {world.processes} or auto, as {world.launcher} started, got {devices}"
        )
    chosen = isinstance(devices, list | str) and count == world.processes  # which ones, not how many
    arguments = {"num_nodes": world.nodes, "devices": devices if chosen else world.processes}
    return arguments | ({"strategy": "ddp"} if world.size > 1 and options.strategy == "auto" else {})


def run_plugins() -> list[Any]:
    """Lightning's plugins for a fit: checkpoints that stay whole, and SLURM without requeueing of its own.

    Its own saves from within the signal's handler, wherever the step is.
    """
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    from tasks.checkpoint_file import WholeCheckpoints

    world = launched()
    by_srun = world is not None and world.launcher == "srun"
    return [WholeCheckpoints(), *([SLURMEnvironment(auto_requeue=False)] if by_srun else [])]


def _count(devices: Any) -> int | None:
    """Number of devices that an option names; None for all that there are."""
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if isinstance(devices, list):
        return len(devices)
    return None if devices in ("auto", "-1", -1) else int(devices)
