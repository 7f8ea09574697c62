"""Several normalizers trained with one configuration, and which of them wins: `python -m tasks.compare`."""
