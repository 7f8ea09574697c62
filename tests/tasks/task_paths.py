"""Where the repository and its digits configuration lie."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DIGITS = REPOSITORY / "conf" / "classification" / "digits.yaml"
