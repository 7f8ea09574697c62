"""Maps of activations that are too small for a layer, told by the options that make them so."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.base import BaseModule
from tasks.data import BaseDataModule
from tasks.errors import UserError

_NO_VARIANCE = ("Expected more than 1 value per channel", "Expected more than 1 spatial element")
_TOO_SMALL = ("Output size is too small", "Kernel size can't be greater than actual input size")


@contextmanager
def small_maps_explained(model: BaseModule, data: BaseDataModule) -> Iterator[None]:
    """Turn what torch raises about a map's size, from deep within a network, into one line.

    Raises:
        UserError: A channel has a single value in the batch, or a map is smaller than a kernel.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        told, options = str(error), model.hparams
        if told.startswith(_NO_VARIANCE):
            raise UserError(
                f"data.batch_size: {data.batch_size} leaves norm {options['norm']!r} a single value a "
                "channel in a 1×1 map, and so no variance: take 2 or more, or norm en, sn or gn"
            ) from error
        if any(sign in told for sign in _TOO_SMALL):
            known = inspect.signature(type(data)).parameters
            option = next((f"data.{name}: " for name in ("crop_size", "image_size") if name in known), "")
            raise UserError(
                f"{option}the images are too small for network {options['network']!r} ({told.strip()})"
            ) from error
        raise
