"""Verify a data set's folder: decode every image, compare classes and splits, find duplicates."""
