"""One colour a normalizer, the same in every figure."""

# Told apart by protan, deutan and tritan eyes, and visible on white and on near-black paper.
NORM_COLORS = {
    "bn": "#0072b2",
    "in": "#e69f00",
    "ln": "#009e73",
    "gn": "#cc79a7",
    "sn": "#56b4e9",
    "ssn": "#964bff",
    "cbn": "#8a4b24",
    "en": "#d55e00",
}
OTHER_COLOR = "#7a7f87"
"""Of a normalizer that has no colour of its own."""
HEAT_COLOR = "#1f5fb4"
"""Deepest colour of a matrix; white figures stand out from it."""
LESS_COLOR, MORE_COLOR = "#7a5bb5", "#c46210"
"""Purple and orange, for what lies below and above a reference."""


def norm_color(norm: str) -> str:
    """The colour of a normalizer by its key."""
    return NORM_COLORS.get(norm, OTHER_COLOR)
