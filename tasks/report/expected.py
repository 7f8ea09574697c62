"""The outcome that the header of a configuration file promises."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError
from tasks.preflight import config_files

_HEADER = "# python -m tasks."
_FIELD = re.compile(r"#\s?([A-Z][\w ,]*):\s*(.*)")
_VALUE = r"(?<![\w.])(\d+(?:\.\d+)?)(\s?%)?"


@dataclass(frozen=True)
class Expectation:
    """The `Expected:` field of a header.

    Attributes:
        path: File that says so.
        text: What it says, on one line.
    """

    path: Path
    text: str

    def target(self, metric: str, norm: str) -> float | None:
        """The value of `metric`, as a fraction: that "with <norm>" where values are given by normalizer."""
        _, found, rest = self.text.partition(f"{metric} ")
        if not found:
            return None
        rest = re.split(r"\b(?:train|val|test)/", rest)[0]
        by_norm = {name: _fraction(*value) for *value, name in re.findall(rf"{_VALUE} with (\w+)", rest)}
        if by_norm:
            return by_norm.get(norm)
        first = re.match(_VALUE, rest)
        return _fraction(*first.groups(default="")) if first else None


def _fraction(number: str, percent: str) -> float:
    return float(number) / 100 if percent else float(number)


def command_of(config: Path) -> str:
    """The command line in the first line of a run's `config.yaml`, '' where there is none."""
    if not config.is_file():
        return ""
    with config.open(encoding="utf-8") as file:
        first = file.readline().strip()
    return first.removeprefix("# ") if first.startswith(_HEADER) else ""


def expectation_of(command: str) -> Expectation | None:
    """What the first configuration file of a command line that has an `Expected:` says; None without one."""
    try:
        files = config_files(shlex.split(command)[3:])  # python -m tasks.<task> …
    except (UserError, ValueError):  # a file was moved since; nothing can be compared
        return None
    for file in files:
        text = header_field(file.path.read_text(encoding="utf-8"), "Expected")
        if text:
            return Expectation(file.path, text)
    return None


def header_field(text: str, name: str) -> str:
    """A field `# Name: …` of the comment that a file starts with, its lines joined; '' without it."""
    inside, found = False, []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        start = _FIELD.match(line)
        if start:
            inside = start[1] == name
        if inside:
            found.append(start[2] if start else line.lstrip("# "))
    return " ".join(found).strip()
