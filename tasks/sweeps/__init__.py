"""Sweeps: checked without a server, run on this machine with Optuna or by W&B's agents."""
