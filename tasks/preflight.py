"""What can be said about a command line before anything heavy is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError, close_matches

SUBCOMMANDS = ("fit", "validate", "test", "predict")
_GROUPS = ("trainer", "model", "data")


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file as read: `tree` belongs at key `prefix` ('' for a whole configuration)."""

    path: Path
    prefix: str
    tree: dict[str, Any]

    def holds(self, key: str) -> bool:
        """Whether this file itself sets `key` (dotted, from the root)."""
        parts = key.split(".")
        if self.prefix:
            if parts[0] != self.prefix:
                return False
            parts = parts[1:]
        node: Any = self.tree
        for part in parts:
            if not isinstance(node, dict) or part not in node:
                return False
            node = node[part]
        return True


def preflight(task: str, args: Sequence[str]) -> None:
    """Check the subcommand and the configuration files, then say that the libraries are being loaded.

    Raises:
        UserError: No or an unknown subcommand, a missing or malformed configuration file.
    """
    # Read when torch is loaded. Idle threads that spin wait for a core that another process uses: on a shared
    # machine, small networks become tens of times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not args or args[0] in ("-h", "--help"):
        if not args:
            raise UserError(f"expected a subcommand ({', '.join(SUBCOMMANDS)}), got none")
        return
    if not args[0].startswith("-") and args[0] not in SUBCOMMANDS:
        hint = close_matches(args[0], SUBCOMMANDS)
        raise UserError(f"unknown subcommand {args[0]!r}{hint}: expected one of {', '.join(SUBCOMMANDS)}")
    files = config_files(args)
    if is_first_process() and not any(arg in ("-h", "--help") for arg in args):
        named = " + ".join(str(file.path) for file in files if not file.prefix) or "no configuration file"
        print(f"{task} {args[0]}: {named} (loading the libraries …)", file=sys.stderr, flush=True)


def config_files(args: Sequence[str]) -> list[ConfigFile]:
    """Read the configuration files of a command line, each followed by the files that it includes."""
    files: list[ConfigFile] = []
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if not equals:
            value = args[position + 1] if position + 1 < len(args) else ""
        if option in ("-c", "--config"):
            files += _read_with_includes(Path(value), "", f"given by {option}")
        elif option.removeprefix("--") in _GROUPS and _is_file_name(value):
            files += _read_with_includes(Path(value), option.removeprefix("--"), f"given by {option}")
    return files


def where_set(key: str, args: Sequence[str]) -> str:
    """'on the command line' or 'in <file>': where `key` got its value, '' where that cannot be told."""
    for arg in args:
        option = arg.partition("=")[0].removeprefix("--").rstrip("+")
        if arg.startswith("--") and (option == key or option.startswith(f"{key}.")):
            return "on the command line"
    for file in reversed(config_files(args)):
        if file.holds(key):
            return f"in {file.path}"
    return ""


def is_first_process() -> bool:
    """Whether this is the only process or rank 0 of several, as launchers tell it by the environment."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value.endswith((".yaml", ".yml", ".json"))


def _read_with_includes(path: Path, prefix: str, origin: str) -> list[ConfigFile]:
    tree = _read(path, origin)
    files = [ConfigFile(path, prefix, tree)]
    if not prefix:
        for group in _GROUPS:
            section = tree.get(group, {})
            is_reference = isinstance(section, str) and (_is_file_name(section) or "${" in section)
            if not isinstance(section, dict) and not is_reference:
                raise UserError(
                    f"{path}: {group}: expected a mapping or a YAML file, got {type(section).__name__}"
                )
            if _is_file_name(section):
                included = Path(os.path.normpath(path.parent / section))
                files += _read_with_includes(included, group, f"included by {path} as {group}")
    return files


def _read(path: Path, origin: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"configuration file {str(path)!r} ({origin}) does not exist")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"malformed YAML in {path}{line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, got {type(tree).__name__}")
    return tree
