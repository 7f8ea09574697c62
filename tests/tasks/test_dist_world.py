"""What the environment says of a launch, and what is refused because of it."""

import os
import shlex
import subprocess
from types import SimpleNamespace

import pytest
import yaml
from task_paths import DIGITS, REPOSITORY

from tasks.errors import UserError
from tasks.launch import parse, torchrun_arguments
from tasks.world import World, launched, trainer_arguments

VARIABLES = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("NTASKS", "NNODES", "NTASKS_PER_NODE", "JOB_ID", "JOB_NAME", "STEP_ID")


@pytest.fixture
def environment(monkeypatch):
    """environment(**variables): these launchers' variables, and no others."""
    for name in (*VARIABLES, *(f"SLURM_{part}" for part in SLURM)):
        monkeypatch.delenv(name, raising=False)

    def set_all(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return set_all


TORCHRUN = {"TORCHELASTIC_RUN_ID": "here:1", "WORLD_SIZE": 6, "LOCAL_WORLD_SIZE": 3}
SRUN = {
    "SLURM_NTASKS": 6,
    "SLURM_NNODES": 2,
    "SLURM_NTASKS_PER_NODE": 3,
    "SLURM_JOB_ID": 17,
    "SLURM_JOB_NAME": "en",
    "SLURM_STEP_ID": 0,
}


def options(**changed):
    return SimpleNamespace(**{"num_nodes": 1, "devices": "auto", "strategy": "auto", **changed})


def test_the_world_is_what_the_launcher_says(environment):
    environment()
    assert launched() is None
    assert trainer_arguments(options()) == {}
    environment(**SRUN)
    assert launched() == World("srun", nodes=2, processes=3, launch="slurm-17")
    environment(**TORCHRUN)  # inside of a SLURM job
    assert launched() == World("torchrun", nodes=2, processes=3, launch="here:1")
    assert launched().size == 6
    environment(TORCHELASTIC_RUN_ID="none", MASTER_ADDR="there", MASTER_PORT=2)
    assert launched().launch == "there:2"


def test_a_slurm_job_without_srun_is_refused_before_it_waits_for_ever(environment, monkeypatch):
    environment(**SRUN)
    monkeypatch.delenv("SLURM_STEP_ID")
    with pytest.raises(UserError, match="6 tasks of this SLURM job to be started by srun"):
        launched()
    environment(SLURM_JOB_NAME="interactive")
    assert launched() is None
    environment(**{**SRUN, "SLURM_NTASKS_PER_NODE": 6})
    with pytest.raises(UserError, match="expected --ntasks-per-node 3 for 6 tasks on 2 nodes, got 6"):
        launched()


@pytest.mark.parametrize("devices", ["auto", -1, "-1", 1, 3])
def test_devices_and_nodes_come_from_the_launch(environment, devices):
    environment(**TORCHRUN)
    expected = {"num_nodes": 2, "devices": 3, "strategy": "ddp"}
    assert trainer_arguments(options(devices=devices)) == expected
    assert trainer_arguments(options(devices=devices, num_nodes=2)) == expected


def test_chosen_devices_and_a_chosen_strategy_stay(environment):
    environment(**TORCHRUN)
    arguments = trainer_arguments(options(devices=[4, 5, 6], strategy="fsdp"))
    assert arguments == {"num_nodes": 2, "devices": [4, 5, 6]}
    assert trainer_arguments(options(devices="4,5,6"))["devices"] == "4,5,6"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_nodes": 4}, "trainer.num_nodes: expected 2, as torchrun started, got 4"),
        ({"devices": 8}, "trainer.devices: expected 3 or auto, as torchrun started, got 8"),
        ({"devices": [0, 1]}, "trainer.devices: expected 3 or auto"),
    ],
)
def test_other_processes_than_there_are_are_refused(environment, changed, told):
    environment(**TORCHRUN)
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        trainer_arguments(options(**changed))


def test_several_nodes_without_a_launcher_are_refused_at_once(environment, fit, runs):
    environment()
    outcome = fit("--trainer.num_nodes", "2")
    assert outcome.code == 2
    assert "trainer.num_nodes: expected a launcher that starts 2 nodes" in outcome.error
    assert not runs.exists() or not list(runs.iterdir())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--processes 2", "expected a task"),
        ("--processes 0 classification fit", "expected an integer ≥ 1, got '0'"),
        ("--nodes 2 classification fit", "expected MASTER_ADDR, address of machine 0 of 2"),
        ("--nodes 2 --node_rank 2 --master_addr a classification", "expected NODE_RANK below 2, got 2"),
        ("--gpus 2 classification fit", "unrecognized arguments: --gpus|invalid"),
    ],
)
def test_a_launch_that_cannot_be_is_refused_in_one_line(line, told):
    with pytest.raises(UserError, match=told):
        parse(line.split())


def test_torchrun_is_told_where_the_machines_meet():
    machine = "--nodes 2 --node_rank 1 --processes 8 --master_addr ten"
    line = f"{machine} --max_restarts 5 --timeout 9 segmentation fit --x 1"
    arguments = torchrun_arguments(parse(line.split()))
    assert arguments[-5:] == ["-m", "tasks.segmentation", "fit", "--x", "1"]
    assert {
        "--nnodes=2",
        "--nproc-per-node=8",
        "--max-restarts=5",
        "--rdzv-endpoint=ten:29400",
        "--rdzv-id=ten:29400",
        "--rdzv-conf=is_host=0,join_timeout=9,read_timeout=9",
    } <= set(arguments)
    assert "--standalone" in torchrun_arguments(parse(["--processes", "2", "classification", "fit"]))


@pytest.mark.parametrize(
    ("target", "task"),
    [("train-cls", "classification"), ("train-noisy", "noisy_labels"), ("train-seg", "segmentation")],
)
def test_make_launches_what_it_is_told(target, task):
    def made(*variables):
        line = ["make", "-n", "-o", ".venv/.ready", target, *variables]
        # Not the variables of a `make test` around it, nor its note of the folder.
        environment = {"PATH": os.environ["PATH"]}
        shown = subprocess.run(
            line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
        ).stdout
        return shlex.split(shown)[2:]

    assert made()[0] == f"tasks.{task}"
    name, *line = made("GPUS=8", "NODES=4", "NODE_RANK=2", "MASTER_ADDR=ten", "LAUNCH=--timeout 9")
    options = parse(line)
    assert name == "tasks.launch" and options.task[:2] == [task, "fit"]
    assert (options.processes, options.nodes, options.node_rank) == (8, 4, 2)
    assert (options.master_addr, options.timeout) == ("ten", 9)
    assert options.task[-2:] == ["--trainer.accelerator", "gpu"]
    alone = parse(made("PROCESSES=2", "ARGS=--name x")[1:])
    assert (alone.processes, alone.nodes, alone.task[-2:]) == (2, 1, ["--name", "x"])


@pytest.mark.parametrize("name", ["slurm.sh", "wandb_agents.sh"])
def test_the_cluster_scripts_are_shell(name):
    path = REPOSITORY / "conf/cluster" / name
    subprocess.run(["bash", "-n", path], check=True)
    assert "set -euo pipefail" in path.read_text()


def test_the_pods_meet_at_the_master():
    job = yaml.safe_load((REPOSITORY / "conf/cluster/pytorchjob.yaml").read_text())
    kinds = job["spec"]["pytorchReplicaSpecs"]
    nodes = sum(kind["replicas"] for kind in kinds.values())
    for kind in kinds.values():
        (container,) = kind["template"]["spec"]["containers"]
        words = container["args"][0].split()
        words = words[words.index("tasks.launch") + 1 :]
        parsed = parse([word.strip('"').replace("$RANK", "3") for word in words if word != '-i)"'])
        assert parsed.nodes == nodes == 4
        assert parsed.processes == container["resources"]["limits"]["nvidia.com/gpu"]
        assert (REPOSITORY / parsed.task[parsed.task.index("--config") + 1]).is_file()


@pytest.mark.parametrize("name", ["cpu", "gpu", "multinode", "debug"])
def test_the_trainer_configurations_parse(fit_parser, name, environment, monkeypatch):
    from tasks.cli import ExperimentCLI

    class Built(Exception):
        pass

    def stop(self, **kwargs):  # no GPU is here: the trainer itself is not built
        raise Built(self)

    environment()
    monkeypatch.setattr(ExperimentCLI, "instantiate_trainer", stop)
    with pytest.raises(Built) as caught:
        fit_parser("--config", DIGITS, "--config", REPOSITORY / f"conf/trainer/{name}.yaml")
    cli = caught.value.args[0]
    assert cli.options.trainer.devices == (1 if name in ("cpu", "debug") else "auto")
    if name == "multinode":
        assert cli.config_init.fit.trainer.strategy._timeout.total_seconds() == 600
