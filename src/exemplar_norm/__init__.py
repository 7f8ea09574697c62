"""Exemplar Normalization and its family: drop-in normalization layers for PyTorch."""

from exemplar_norm.backends import backend
from exemplar_norm.convert import convert_norm
from exemplar_norm.layers import (
    ExemplarNorm1d,
    ExemplarNorm2d,
    ExemplarNorm3d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
)
from exemplar_norm.ratios import record_ratios
from exemplar_norm.registry import NORMS

__all__ = [
    "NORMS",
    "ExemplarNorm1d",
    "ExemplarNorm2d",
    "ExemplarNorm3d",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "backend",
    "convert_norm",
    "record_ratios",
]
