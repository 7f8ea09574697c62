"""What can be said about a command line before anything heavy is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError, close_matches

SUBCOMMANDS = ("fit", "validate", "test", "predict")
_GROUPS = ("trainer", "model", "data")  # sections that may stand in a file of their own
_CONFIG = ("-c", "--config")
_HELP = ("-h", "--help")


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file as read: `tree` belongs at key `prefix` ('' for a whole configuration).

    `position` is that of the argument that led to the file; `named` tells the file that it names from those
    that this one builds on or includes.
    """

    position: int
    named: bool
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


def preflight(task: str, args: Sequence[str], more: Sequence[str] = ()) -> None:
    """Check the subcommand and the configuration files, then say that the libraries are being loaded.

    `more` names the task's own subcommands.

    Raises:
        UserError: No or an unknown subcommand, no, a missing or a malformed configuration file.
    """
    choices = (*SUBCOMMANDS, *more)
    if not args or args[0] in _HELP:
        if not args:
            raise UserError(f"expected a subcommand ({', '.join(choices)}), got none")
        return
    if not args[0].startswith("-") and args[0] not in SUBCOMMANDS:
        hint = close_matches(args[0], choices)
        raise UserError(f"unknown subcommand {args[0]!r}{hint}: expected one of {', '.join(choices)}")
    if any(arg in _HELP for arg in args):
        return
    if any(option == "--base" for _, option, _ in _options(args)):
        raise UserError("--base: belongs into a configuration file; --config may be given several times")
    files = [str(file.path) for file in config_files(args) if file.named and not file.prefix]
    if not files:
        raise UserError(f"{args[0]}: expected --config conf/{task}/<name>.yaml, got no configuration file")
    if is_first_process():
        print(f"{task} {args[0]}: {' + '.join(files)} (loading the libraries …)", file=sys.stderr, flush=True)


def with_config_of_run(args: Sequence[str]) -> list[str]:
    """The arguments; where none names a configuration, with that of the run that the checkpoint lies in."""
    options = {option: value for _, option, value in _options(args)}
    checkpoint = options.get("--ckpt_path")
    if not checkpoint or any(option in options for option in (*_CONFIG, *_HELP)):
        return list(args)
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent.parent
    config = folder / "config.yaml"
    return [args[0], "--config", str(config), *args[1:]] if config.is_file() else list(args)


def config_files(args: Sequence[str]) -> list[ConfigFile]:
    """Read the configuration files of a command line, each followed by the files that it includes."""
    files: list[ConfigFile] = []
    for position, option, value in _options(args):
        group = option.removeprefix("--")
        if option in _CONFIG:
            files += _read_all(position, Path(value), f"given by {option}")
        elif group in _GROUPS and _is_file_name(value):
            path = Path(value)
            files.append(ConfigFile(position, True, path, group, _read(path, f"given by {option}")))
    return files


def with_bases(args: Sequence[str]) -> list[str]:
    """The arguments, with the files that a configuration builds on (its key `base`) named before it."""
    files = config_files(args)
    expanded: list[str] = []
    for position, arg in enumerate(args):
        for file in files:
            if file.position == position and not file.named and not file.prefix:
                expanded += ["--config", str(file.path)]
        expanded.append(arg)
    return expanded


def with_options_of_norm(args: Sequence[str]) -> list[str]:
    """The arguments; without the normalizer's options of a file, where another normalizer came after them.

    A configuration that names a normalizer gives the options of that one. `--model.norm sn` behind it would
    find them unknown. What is left out is said.
    """
    norm, owner, path, place = "", "", None, len(args)
    files = config_files(args)
    for position, option, value in _options(args):
        for file in (file for file in files if file.position == position):  # bases first
            model = file.tree if file.prefix == "model" else file.tree.get("model")
            if not isinstance(model, dict):
                continue
            norm = str(model.get("norm", norm))
            if "norm_options" in model:
                owner, path = norm, file.path if model["norm_options"] else None
        name = option.removeprefix("--")
        if name == "model.norm":
            norm = value
        elif name.startswith("model.norm_options"):
            place = min(place, position)
    if path is None or not owner or owner == norm:
        return list(args)
    if is_first_process() and not any(arg.startswith("--print_config") for arg in args):
        print(f"norm {norm}: the options of {owner} in {path} are left out", flush=True)
    # Before the first of the command line's own, which would else be added to them.
    return [*args[:place], "--model.norm_options", "null", *args[place:]]


def where_set(key: str, args: Sequence[str]) -> str:
    """'on the command line' or 'in <file>': where `key` got its value, '' where that cannot be told."""
    place, related = "", ""
    files = config_files(args)
    for position, option, _ in _options(args):
        name = option.removeprefix("--").rstrip("+")
        if name == key or (key.startswith(f"{name}.") and name not in _GROUPS):
            place = "on the command line"
        elif name.startswith(f"{key}."):
            related = "on the command line"
        for file in files:
            if file.position == position and file.holds(key):
                place = f"in {file.path}"
    return place or related


def top_level_value(key: str, args: Sequence[str], default: str) -> str:
    """The value that a key of the top level will have: the last one that was given."""
    value = default
    files = [file for file in config_files(args) if not file.prefix]
    for position, option, given in _options(args):
        if option == f"--{key}":
            value = given
        for file in files:
            if file.position == position and key in file.tree:
                value = str(file.tree[key])
    return value


def _options(args: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """(position, option, value) of each option of the command line."""
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if arg.startswith("-"):
            yield position, option, value if equals else next(iter(args[position + 1 : position + 2]), "")


def is_first_process() -> bool:
    """Whether this is the only process or rank 0 of several, as launchers tell it by the environment."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value.endswith((".yaml", ".yml", ".json"))


def _read_all(position: int, path: Path, origin: str, above: tuple[Path, ...] = ()) -> list[ConfigFile]:
    """A configuration file after those that it builds on and before those that it includes."""
    if path in above:
        raise UserError(f"{path} builds on itself: {' → '.join(map(str, [*above, path]))}")
    tree = _read(path, origin)
    bases = tree.get("base", [])
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise UserError(f"{path}: base: expected a list of YAML files, got {bases!r}")
    files: list[ConfigFile] = []
    for name in bases:
        files += _read_all(position, _beside(path, name), f"base of {path}", (*above, path))
    files.append(ConfigFile(position, not above, path, "", tree))
    for group in (*_GROUPS, "wandb"):
        section = tree.get(group, {})
        is_file = group in _GROUPS and _is_file_name(section)
        is_reference = isinstance(section, str) and "${" in section
        if not (isinstance(section, dict) or is_file or is_reference):
            expected = "a mapping or a YAML file" if group in _GROUPS else "a mapping"
            raise UserError(f"{path}: {group}: expected {expected}, got {_kind(section)}")
        if is_file:
            included = _beside(path, section)
            content = _read(included, f"included by {path} as {group}")
            files.append(ConfigFile(position, False, included, group, content))
    return files


def _beside(path: Path, name: str) -> Path:
    """A file that `path` names, relative to its own folder."""
    return Path(os.path.normpath(path.parent / name))


def _read(path: Path, origin: str) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(f"configuration file {str(path)!r} ({origin}) is a folder")
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
        raise UserError(f"{path}: expected a mapping of keys to values, got {_kind(tree)}")
    for section in (tree, *(part for part in tree.values() if isinstance(part, dict))):
        for key in section:
            if not isinstance(key, str):
                raise UserError(f"{path}: expected names as keys, got {key!r}")
    return tree


def _kind(value: Any) -> str:
    return "nothing: it is empty" if value is None else type(value).__name__
