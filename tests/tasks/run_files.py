"""Reading what a run leaves behind."""

import csv


def rows_of(path):
    """The rows of a CSV file, each a dict from the names of the columns."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
