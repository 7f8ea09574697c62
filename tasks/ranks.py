"""What several processes know together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch

T = TypeVar("T")


def gathered(items: Iterable[T]) -> list[T]:
    """The items of all processes, by rank; called in all of them."""
    own = list(items)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    parts: list[list[T]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, own)
    return [item for part in parts for item in part]
