"""What is left of a run when one of its processes dies: the others, waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.errors import UserError

_GLOO = ("gloo", "timeout caused pair closure")
"""Words of gloo's own failures, which have no type of theirs."""


@contextmanager
def lost_processes() -> Iterator[None]:
    """Say in one line that another process is gone, in place of a library's traceback.

    Raises:
        UserError: A message between the processes failed.
    """
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, DistError) and not any(words in str(error) for words in _GLOO):
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"another process of this run is gone or does not answer ({reason})") from error
