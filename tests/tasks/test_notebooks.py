"""The notebooks are executed whole; what they print and draw is looked at."""

import re

import pytest
from task_paths import REPOSITORY

from tasks.report.colors import NORM_COLORS

pytestmark = pytest.mark.slow

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def code_of(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def run(name):
    """Everything that a notebook prints, and the number of its pictures."""
    from nbclient import NotebookClient

    notebook = nbformat.read(REPOSITORY / "notebooks" / name, as_version=4)
    # An error in a cell is raised here.
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    return text, len(pictures)


def test_there_are_three():
    assert [path.name for path in NOTEBOOKS] == [
        "01_drop_in.ipynb",
        "02_reading_ratios.ipynb",
        "03_small_batches.ipynb",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in code_of(path):
        assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_public_names_and_the_colours_of_the_reports_alone(path):
    source = "\n".join(cell.source for cell in code_of(path))
    imports = re.findall(r"^(?:from|import) (\S+)", source, re.M)
    assert "exemplar_norm" in imports
    assert not [name for name in imports if name.startswith(("exemplar_norm.", "tasks"))]
    for norm, color in re.findall(r'"(\w+)": "(#\w{6})"', source):
        assert NORM_COLORS[norm] == color


@pytest.mark.slow
def test_drop_in():
    text, pictures = run("01_drop_in.ipynb")
    assert pictures == 2
    # The same function in another order of operations: outputs of size 10 in float32.
    assert float(re.search(r"largest difference of the outputs: (\S+)", text)[1]) < 1e-4
    bn, en, small = (float(value) for value in re.findall(r"accuracy (\d\.\d+)", text))
    # A tenth is chance. The seeded values are 0.95 and more; other machines round otherwise.
    assert min(bn, en, small) > 0.8


@pytest.mark.slow
def test_reading_ratios():
    text, pictures = run("02_reading_ratios.ipynb")
    assert pictures == 3
    rights = dict(re.findall(r"^(\w[\w ]+): (\d\.\d+) right", text, re.M))
    assert rights.keys() == {"classification", "noisy labels", "segmentation"}
    assert float(rights["classification"]) > 0.8
    rows = re.findall(r"^(?:classification|noisy labels|segmentation) +\d +(\S+) +(\S+)$", text, re.M)
    assert len(rows) == 12
    assert all(0 <= float(spread) <= 1 and 0 <= float(between) <= 1 for spread, between in rows)


@pytest.mark.slow
def test_small_batches():
    text, pictures = run("03_small_batches.ipynb")
    assert pictures == 1
    rows = re.findall(r"^(bn|sn|en) +(\S+) +(\S+) +(\S+)$", text, re.M)
    assert [row[0] for row in rows] == ["bn", "sn", "en"]
    assert all(0 < float(value) <= 1 for row in rows for value in row[1:])
