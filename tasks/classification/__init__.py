"""Image classification: `python -m tasks.classification {fit,validate,test,predict,export}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.classification.load import Classifier, load_classifier

__all__ = ["Classifier", "load_classifier"]


def __getattr__(name: str) -> Any:
    """Import torch when a name is used: the command line answers to mistakes before that."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tasks.classification import load

    return getattr(load, name)
