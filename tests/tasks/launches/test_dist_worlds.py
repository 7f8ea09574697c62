"""Classification on one, two and three machines of loopback: the same losses, each image once."""

import pytest
from curve_jobs import NORMS
from processes import finish_all, torchrun
from run_files import rows_of
from small_fits import outcome
from task_paths import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def worlds(folder):
    """What curve_jobs.py printed on 1, 2 and 3 machines of one process each."""
    printed = []
    for machines in (1, 2, 3):
        jobs = [REPOSITORY / "tests/tasks/launches/curve_jobs.py", folder]
        agents = torchrun(machines, jobs, folder / f"world-{machines}")
        finish_all(agents)
        printed.append("".join(agent.text for agent in agents))
    return printed


@pytest.mark.parametrize("norm", NORMS)
def test_the_loss_curve_does_not_depend_on_the_number_of_processes(folder, worlds, norm):
    curves = []
    for processes in (1, 2, 3):
        rows, _ = outcome(folder, f"{norm}-{processes}")
        columns = ("train/loss", "val/loss", "val/top1")
        curves.append({c: [float(row[c]) for row in rows if row[c]] for c in columns})
    assert len(curves[0]["train/loss"]) == 24 and len(curves[0]["val/loss"]) == 2
    for other in curves[1:]:
        # In float64, sums in another order differ by 1e-16; 24 steps of training made 7e-10 of it at most.
        assert other["train/loss"] == pytest.approx(curves[0]["train/loss"], rel=1e-8)
        assert other["val/loss"] == pytest.approx(curves[0]["val/loss"], rel=1e-8)
        assert other["val/top1"] == curves[0]["val/top1"]


def test_every_sample_is_tested_and_predicted_once_on_any_number_of_processes(folder, worlds):
    tables, tested = [], []
    for processes, printed in zip((1, 2, 3), worlds, strict=True):
        tested.append(next(line for line in printed.splitlines() if "test/top1" in line))
        rows = rows_of(folder / f"predictions-{processes}.csv")
        tables.append([(row["sample"], row["predicted"], row["true"]) for row in rows])
    assert len(tables[0]) == len({sample for sample, _, _ in tables[0]}) == 359  # a fifth of 1,797 digits
    assert tables[1] == tables[0] and tables[2] == tables[0]
    right = sum(predicted == true for _, predicted, true in tables[0])
    assert all(f"{right / 359:.4f}" in line for line in tested)
