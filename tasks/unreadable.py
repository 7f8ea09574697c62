"""Files that cannot be decoded: listed once each, counted over all processes, too many of them an error."""

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
    """More unreadable files than the data set may have.

    Args:
        message: What is wrong, in one line.
    """

    def __init__(self, message: str) -> None:
        # What a loader's worker raises is built anew in the training process, from the traceback as text.
        super().__init__(message.rpartition(f"{__name__}.{type(self).__name__}: ")[2].strip())


class UnreadableFiles:
    """The unreadable files of one split.

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
