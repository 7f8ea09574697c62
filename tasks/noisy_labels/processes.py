"""Tensors of all processes in one."""

from __future__ import annotations

import torch
from torch import Tensor


def from_all_processes(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order; their numbers may differ."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    from torchmetrics.utilities.distributed import gather_all_tensors

    return torch.cat(gather_all_tensors(rows.contiguous()))
