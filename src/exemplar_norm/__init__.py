"""Exemplar Normalization and its family: drop-in normalization layers for PyTorch."""

from exemplar_norm.backends import backend
from exemplar_norm.calibrate import calibrate
from exemplar_norm.conditional import ConditionalNorm1d, ConditionalNorm2d, ConditionalNorm3d
from exemplar_norm.convert import convert_norm
from exemplar_norm.diagnosis import GateDiagnosis, diagnose_gates
from exemplar_norm.exemplar import ExemplarNorm1d, ExemplarNorm2d, ExemplarNorm3d
from exemplar_norm.ratios import record_ratios, replace_ratios
from exemplar_norm.registry import NORMS
from exemplar_norm.switch import (
    SparseSwitchNorm1d,
    SparseSwitchNorm2d,
    SparseSwitchNorm3d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    set_sparsity,
)
from exemplar_norm.sync import sync_norm
from exemplar_norm.weights import load_weights

__all__ = [
    "NORMS",
    "ConditionalNorm1d",
    "ConditionalNorm2d",
    "ConditionalNorm3d",
    "ExemplarNorm1d",
    "ExemplarNorm2d",
    "ExemplarNorm3d",
    "GateDiagnosis",
    "SparseSwitchNorm1d",
    "SparseSwitchNorm2d",
    "SparseSwitchNorm3d",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "backend",
    "calibrate",
    "convert_norm",
    "diagnose_gates",
    "load_weights",
    "record_ratios",
    "replace_ratios",
    "set_sparsity",
    "sync_norm",
]
