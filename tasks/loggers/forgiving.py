"""Failures of a logger that do not stop the run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_warn


def forgiving(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a logger's method fail without stopping the run; the first failure of each logger is told."""

    @functools.wraps(method)
    def call(self: Logger, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # a full disk, a lost connection: nothing that training needs
            if not getattr(self, "_told", False):
                self._told = True  # type: ignore[attr-defined]
                rank_zero_warn(f"{type(self).__name__} failed, training goes on without it: {error!r}")
            return None

    return call
