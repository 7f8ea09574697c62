"""Files that cannot be decoded: a few of training are replaced, one that a score counts ends the run."""

from __future__ import annotations

import fcntl
import re
import secrets
import sys
import tempfile
from pathlib import Path

from tasks.errors import UserError
from tasks.images import UnreadableImage

_TOLD = 10


class TooManyUnreadable(UserError):
    """More unreadable files than the data set may have."""


class UnreadableFiles:
    """The unreadable files of one split, each replaced by another image.

    Args:
        log: File that lists those of all splits, processes and epochs: split, path and reason, by tabs.
        split: Name of the split.
        size: Number of its samples.
        share: Largest share of them that may be unreadable.
    """

    def __init__(self, log: Path, split: str, size: int, share: float) -> None:
        self.log, self.split, self.size, self.share = log, split, size, share
        self.noted: set[str] = set()

    def note(self, error: UnreadableImage) -> None:
        """List a file that is not listed yet.

        Raises:
            TooManyUnreadable: The split has more of them than `share` allows.
        """
        path = _plain(error.path)
        if path in self.noted:
            return
        self.noted.add(path)
        with self.log.open("a+", encoding="utf-8", errors="surrogateescape") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            file.seek(0)
            lines = [line.split("\t") for line in file]
            listed = [line[1] for line in lines if line[0] == self.split]
            if path not in listed:
                listed.append(path)
                file.write(f"{self.split}\t{path}\t{_plain(error.reason)}\n")
        if not lines:
            print(
                f"warning: {path} is unreadable ({_plain(error.reason)}): another image takes its place; "
                f"all such files are listed in {self.log}",
                file=sys.stderr,
                flush=True,
            )
        if len(listed) > self.share * self.size:
            raise TooManyUnreadable(
                f"unreadable images in {self.split}: {len(listed)} of {self.size}, more than "
                f"data.max_unreadable ({self.share:g}) allows; they are listed in {self.log}: "
                f"{', '.join(listed[:_TOLD])}{', …' if len(listed) > _TOLD else ''}"
            )


class NoneUnreadable:
    """The files of a split that is evaluated: a score counts each once, none can take another's place.

    Args:
        split: Name of the split.
    """

    def __init__(self, split: str) -> None:
        self.split = split

    def note(self, error: UnreadableImage) -> None:
        """End the run.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"unreadable image in {self.split}: {_plain(error.path)} ({_plain(error.reason)}): a score "
            "counts every image once; python -m tasks.check_data finds all such files"
        )


def temporary_log() -> Path:
    """A path for a log in the temporary folder; nothing is there until there is something to list."""
    return Path(tempfile.gettempdir()) / f"unreadable-{secrets.token_hex(8)}.txt"


def summary(log: Path) -> str:
    """How many files a log lists and where it is; '' where it lists none."""
    count = len(log.read_bytes().splitlines()) if log.is_file() else 0
    return f"{count} unreadable image{'s' * (count > 1)}, listed in {log}" if count else ""


def _plain(text: object) -> str:
    """A text that fits into one field of one line."""
    return re.sub(r"[\t\r\n]+", " ", str(text)).strip()
