"""Two hosts with a network between them: network namespaces and a virtual cable, where that is permitted."""

import os
import shutil
import subprocess

import pytest
from small_fits import EPOCH, assert_equal_runs, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def hosts():
    """(prefix of a command, address) of each of two hosts."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")
    names = [f"en{os.getpid()}{side}" for side in "ab"]
    made = []
    try:
        for name in names:
            if subprocess.run(["ip", "netns", "add", name], check=False).returncode:
                pytest.skip("network namespaces are not permitted here")
            made.append(name)
        peer = ["peer", "name", "cable", "netns", names[1]]
        ip("link", "add", "cable", "netns", names[0], "type", "veth", *peer)
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield [(["ip", "netns", "exec", name], f"10.77.0.{n}") for n, name in enumerate(names, 1)]
    finally:
        for name in made:
            ip("netns", "delete", name)


def ip(*words):
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def agents(folder, started, hosts):
    """agents(name, …) as the agents of both, which train together."""

    def start(name, *options, restarts=3, **variables):
        found = []
        for rank, (prefix, address) in enumerate(hosts):
            place = ["--nodes", 2, "--node_rank", rank, "--master_addr", hosts[0][1], "--local_addr", address]
            place += ["--max_restarts", restarts]
            line = launch(folder, name, *options, processes=1, machine=place)
            log = folder / f"{name}-{rank}.log"
            found.append(started(line, log, prefix=prefix, GLOO_SOCKET_IFNAME="cable", **variables))
        return found

    return start


def test_two_hosts_with_a_network_between_them_train_as_two_processes_do(folder, whole, agents):
    both = agents("hosts")
    assert [agent.finish() for agent in both] == [0, 0], "".join(agent.text for agent in both)
    assert "on 2 nodes" in "".join(agent.text for agent in both)
    assert_equal_runs(folder, "hosts", whole)


def test_a_cable_that_is_cut_ends_the_run_within_the_timeout(agents, hosts, paused):
    """Nothing closes the connections, as when a host loses its power."""
    pause = paused(EPOCH + 4)
    timeout = ["--trainer.strategy", "pytorch_lightning.strategies.DDPStrategy"]
    timeout += ["--trainer.strategy.timeout", "0:00:20"]
    first, second = agents("cut", *timeout, restarts=0, **pause.variables)
    first.wait_for(pause.reached)
    prefix, _ = hosts[1]
    subprocess.run([*prefix, "ip", "link", "set", "cable", "down"], check=True)
    pause.go()
    told = "another process of this run is gone or does not answer"
    second.wait_for(told)  # its agent still believes in the connection to machine 0
    assert first.finish() == 2 and told in first.text, first.text
