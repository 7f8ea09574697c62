"""Names that tell classes apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def distinct(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The names, with the class folder behind those that several classes share (ImageNet has two cranes)."""
    count = Counter(names)
    pairs = zip(names, classes, strict=True)
    return [f"{name} ({folder})" if count[name] > 1 else name for name, folder in pairs]
