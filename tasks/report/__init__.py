"""What a run tells: the table at the end of a command, `report.html` of a run, the index of all runs."""

from tasks.report.page import Html, Section
from tasks.report.table import duration, fraction, print_table

__all__ = ["Html", "Section", "duration", "fraction", "print_table"]
