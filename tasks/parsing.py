"""The parser of the command line, and its complaints in one line."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any, NoReturn, get_args, get_origin, is_typeddict

from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.cli import LightningArgumentParser

from tasks.errors import UserError, close_matches, one_line
from tasks.preflight import where_set


class ParserError(Exception):
    """The parser's own, long message."""


class StrictParser(LightningArgumentParser):
    """Parser that raises its complaint, in place of printing the usage and leaving."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message; also reached from the parsers of the subcommands."""
        raise ParserError(message) from ex


def with_bracketed_lists(args: Sequence[str], parser: LightningArgumentParser) -> list[str]:
    """The arguments, with `--key a b` of a key that takes a list as the parser reads it, `--key [a, b]`.

    Args:
        args: The command line.
        parser: Parser of the subcommand, which knows the keys.
    """
    lists = {f"--{action.dest}" for action in parser._actions if _is_list(getattr(action, "_typehint", None))}
    joined: list[str] = []
    left = list(args)
    while left:
        joined.append(left.pop(0))
        if joined[-1] in lists:
            given: list[str] = []
            while left and not left[0].startswith("-"):
                given.append(left.pop(0))
            is_written_out = len(given) == 1 and (given[0].startswith("[") or given[0] == "null")
            joined += given if is_written_out or not given else [f"[{', '.join(given)}]"]
    return joined


def _is_list(kind: Any) -> bool:
    """Whether a type is a list, or a list or nothing."""
    members = [member for member in get_args(kind) if member is not type(None)]
    return get_origin(kind) is list or (bool(members) and all(get_origin(one) is list for one in members))


def explain(message: str, parser: LightningArgumentParser, args: Sequence[str]) -> UserError:
    """Say what the parser complained about in one line: the key, what was expected, what came, and where.

    Args:
        message: The parser's message.
        parser: Parser of the subcommand, which knows the keys.
        args: The command line.
    """
    keys = [action.dest for action in parser._actions if not action.dest.endswith(".help")]
    unknown_key = _search(r"does not accept option '([^']+)'", message)
    if unknown_key:
        place = where_set(unknown_key, args)
        hint = close_matches(unknown_key, keys)
        return UserError(f"unknown configuration key {unknown_key!r}{f' {place}' if place else ''}{hint}")
    unknown_option = _search(r"unrecognized arguments: (.+)", message)
    if unknown_option:
        return UserError(_unknown_option(unknown_option, keys))
    key, complaint = condense_type_error(message)
    if complaint.startswith("unknown"):
        complaint += f": expected one of {', '.join(_dict_keys(parser, key))}"
    unknown = _search(r"^unknown ['\"]?([\w.]+)", complaint)
    place = where_set(f"{key}.{unknown}" if unknown else key, args) if key else ""
    return UserError(f"{key}{': ' if key else ''}{complaint}{f' ({place})' if place else ''}")


def explain_reference(error: OmegaConfBaseException, args: Sequence[str]) -> UserError:
    """Say in one line which `${…}` leads nowhere, and where it stands."""
    key = str(error.full_key or "")
    place = where_set(key, args) if key else ""
    return UserError(f"{key or 'configuration'}: {error.msg or error}{f' ({place})' if place else ''}")


def _unknown_option(given: str, keys: Sequence[str]) -> str:
    option = given.split()[0].partition("=")[0]
    if not option.startswith("-"):
        return f"unexpected argument {option!r}: options are written --key value"
    if option == "--ckpt_path":
        return (
            "unknown option --ckpt_path: fit goes on from a checkpoint with --resume <file> or --resume auto"
        )
    hint = close_matches(option, [f"--{key}" for key in keys])
    return f"unknown option {option}{hint}"


def _dict_keys(parser: LightningArgumentParser, key: str) -> list[str]:
    """Keys of the typed dictionary that an option takes."""
    kinds: list[Any] = [getattr(a, "_typehint", None) for a in parser._actions if a.dest == key]
    kinds += [member for kind in kinds for member in get_args(kind)]
    return [name for kind in kinds if is_typeddict(kind) for name in kind.__annotations__]


def condense_type_error(text: str) -> tuple[str, str]:
    """Reduce the parser's report on one key to (key, 'expected …, got …').

    The parser lists every member of a union and why the value is not one of it; the reader needs what would
    have been accepted and what was given.
    """
    key = _search(r'Parser key "([^"]+)"', text) or ""
    unknown = _search(r"Unexpected keys: \{(.+?)\}", text)
    if unknown:
        return key, f"unknown {unknown}"
    expected = [
        _readable(kind) for kind in re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", text, re.M)
    ]
    wanted = [kind for kind in dict.fromkeys(expected) if kind != "null"]
    got = _search(r"Got value: (.*)$", text) or _search(r"Given value: (.*)$", text)
    if not wanted or got is None:
        return key, one_line(re.sub(r'^Parser key "[^"]+":\s*', "", text))
    nested = _search(r"Given value: NestedArg\(key='(.+?)'", text)
    if nested:
        key = f"{key}.{nested}"
    return key, f"expected {' or '.join(wanted)}, got {got.strip()!r}".replace("\"'", "'").replace("'\"", "'")


def _search(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.M)
    return found[1] if found else None


def _readable(kind: str) -> str:
    """`typing.Literal['a', 'b']` → 'one of a, b'; `<class 'int'>` → 'int'."""
    literal = re.match(r"(?:typing\.)?Literal\[(.+)\]$", kind)
    if literal:
        return "one of " + ", ".join(str(choice) for choice in ast.literal_eval(f"({literal[1]},)"))
    name = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", kind).strip()
    return "null" if name == "NoneType" else name
