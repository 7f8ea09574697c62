"""Exemplar Normalization and its family."""
