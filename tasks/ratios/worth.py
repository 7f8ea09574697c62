"""How far a network leans on the λ of each sample, as a table and in words."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from tasks.tables import write_table

SHUFFLE = "shuffle.csv"
OWN, SHUFFLED, MEAN, UNIFORM = "own", "shuffled", "mean", "uniform"
COLUMNS = ("split", "samples", "metric", "ratios", "value", "difference", "error", "kept")


@dataclass(frozen=True)
class Way:
    """A network whose λ was replaced.

    Attributes:
        value: Its score, a fraction; NaN without true classes.
        error: Standard error of the difference from the score with its own λ; NaN where it is not known.
        kept: Share of the predictions (of pixels, in segmentation) that stay as they were.
    """

    value: float
    error: float
    kept: float


@dataclass(frozen=True)
class Worth:
    """The scores of a network with its own λ and without.

    Attributes:
        split: The split.
        samples: Number of its samples.
        metric: What the score is.
        own: The score with λ as the network chooses it.
        ways: By what takes the place of λ: "shuffled", "mean", "uniform".
    """

    split: str
    samples: int
    metric: str
    own: float
    ways: dict[str, Way]


def write_worth(path: Path, worth: Worth) -> None:
    """Write `shuffle.csv`: a row for each λ."""
    first = (worth.split, worth.samples, worth.metric)
    rows: list[tuple[object, ...]] = [
        (*first, OWN, _number(worth.own), _number(0.0), _number(0.0), _number(1.0))
    ]
    for name, way in worth.ways.items():
        numbers = (way.value, way.value - worth.own, way.error, way.kept)
        rows.append((*first, name, *map(_number, numbers)))
    write_table(path, COLUMNS, rows)


def read_worth(path: Path) -> Worth | None:
    """What a `shuffle.csv` holds; None where there is none."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["ratios"]: row for row in csv.DictReader(file)}
    own = rows.pop(OWN)
    ways = {
        name: Way(*(float(row[column] or "nan") for column in ("value", "error", "kept")))
        for name, row in rows.items()
    }
    return Worth(own["split"], int(own["samples"]), own["metric"], float(own["value"] or "nan"), ways)


def worth_in_words(worth: Worth) -> str:
    """How far this network leans on each sample's own λ, and whether more samples would have to say so.

    It says nothing of what the choice gains: a network that was trained without it would do otherwise.
    """
    way = worth.ways[SHUFFLED]
    if math.isnan(worth.own):
        return (
            f"Without true classes there is no score; {_percent(way.kept)} of the "
            "predictions stay as they are when λ is shuffled between samples."
        )
    points, error = 100 * (worth.own - way.value), 100 * 2 * way.error
    within = f", ± {error:.2g}" if error > 0 else ""
    numbers = (
        f"{worth.metric} {100 * worth.own:.2f} → {100 * way.value:.2f} % on {worth.samples:,} {worth.split} "
        f"samples{within}"
    )
    if points > 0 and not points <= error:
        return (
            f"Shuffling λ between samples costs {points:.2g} points ({numbers}): "
            "so far does this network lean on each sample's own λ. Whether choosing gains anything, only a "
            "network trained with one λ for all samples can tell."
        )
    if points < 0 and not -points <= error:
        return (
            f"Shuffling λ between samples gains {-points:.2g} points ({numbers}): "
            "this network does better with the λ of other samples."
        )
    changed = "leaves the score as it is" if points == 0 else f"changes the score by {-points:+.2g} points"
    return (
        f"Shuffling λ between samples {changed} ({numbers}): "
        "these samples do not show that this network leans on each sample's own λ."
    )


def worth_table(worth: Worth) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: the score with each λ."""
    told = {SHUFFLED: "λ of another sample", MEAN: "each layer's mean λ", UNIFORM: "1/K"}
    rows = [["λ as it is chosen", _score(worth.own), "", "", ""]]
    for name, way in worth.ways.items():
        points = 100 * (way.value - worth.own)
        error = "" if math.isnan(way.error) else f"± {200 * way.error:.2f}"
        lost = "" if math.isnan(points) else f"{points:+.2f}"
        rows.append([told[name], _score(way.value), lost, error, _percent(way.kept)])
    return ["λ", worth.metric, "points", "2 standard errors", "predictions kept"], rows


def _score(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.7g}"
