"""Options of a normalizer in a configuration are those of the normalizer that it names."""

import pytest
import yaml

from tasks.compare.plan import _parsed
from tasks.preflight import with_bases, with_options_of_norm

EN = {"model": {"norm": "en", "norm_options": {"reduction": 2}}}
LEFT_OUT = ["--model.norm_options", "null"]


@pytest.fixture
def file_of(tmp_path):
    def write(name, tree):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return str(path)

    return write


@pytest.mark.parametrize(
    "more, is_left_out",
    [
        ([], False),
        (["--model.norm", "en"], False),
        (["--model.norm", "sn"], True),
        (["--model.norm=sn"], True),
        (["--model.norm", "sn", "--model.norm", "en"], False),
        (["--model.norm_options.reduction", "4"], False),
    ],
)
def test_another_norm_on_the_command_line(file_of, capsys, more, is_left_out):
    line = ["fit", "--config", file_of("a", EN), *more]
    assert with_options_of_norm(line) == line + LEFT_OUT * is_left_out
    said = capsys.readouterr().out
    assert ("norm sn: the options of en in" in said and "a.yaml are left out" in said) is is_left_out


@pytest.mark.parametrize(
    "later, is_left_out",
    [
        ({"model": {"norm": "bn"}}, True),
        ({"model": {"norm": "gn", "norm_options": {"groups": 8}}}, False),
        ({"model": {"norm": "bn", "norm_options": None}}, False),
        ({"model": {"norm_options": {"hidden": 8}}}, False),
        ({"seed_everything": 1}, False),
    ],
)
def test_another_norm_in_a_later_file_or_in_one_that_builds_on_it(file_of, later, is_left_out):
    first = file_of("first", EN)
    line = ["fit", "--config", first, "--config", file_of("later", later)]
    assert with_options_of_norm(line) == line + LEFT_OUT * is_left_out
    line = with_bases(["fit", "--config", file_of("above", {"base": [first], **later})])
    assert with_options_of_norm(line) == line + LEFT_OUT * is_left_out


def test_the_task_then_takes_the_line(file_of):
    line = ["fit", "--config", file_of("a", EN)]
    assert _parsed("classification", line)["model"]["norm_options"] == {"reduction": 2}
    gn = _parsed("classification", [*line, "--model.norm", "gn", "--model.norm_options.groups", "8"])["model"]
    assert (gn["norm"], gn["norm_options"]) == ("gn", {"groups": 8})
    en = _parsed("classification", [*line, "--model.norm_options.hidden", "8"])["model"]
    assert en["norm_options"] == {"reduction": 2, "hidden": 8}
    sn = _parsed("classification", [*line, "--model.norm", "sn"])["model"]
    assert (sn["norm"], sn["norm_options"]) == ("sn", None)
