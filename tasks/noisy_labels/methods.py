"""All methods by name, and what builds one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from torch import nn

from tasks.errors import UserError
from tasks.noisy_labels.co_teaching_learner import CoTeachingLearner
from tasks.noisy_labels.divide_mix_learner import DivideMixLearner
from tasks.noisy_labels.learners import ForwardLearner, Learner, LossLearner
from tasks.noisy_labels.losses import LossOptions, build_loss
from tasks.noisy_labels.transition import ForwardCorrection

MethodName = Literal[
    "ce",
    "label_smoothing",
    "bootstrapping",
    "gce",
    "sce",
    "nce_rce",
    "forward",
    "elr",
    "co_teaching",
    "divide_mix",
]


class MethodOptions(LossOptions, total=False):
    """Options of the methods; each takes its own subset, see its class."""

    warm_up: int
    percentile: float
    forget_rate: float
    gradual_epochs: float
    temperature: float
    unlabelled_weight: float
    threshold: float
    penalty: bool


_TWO_NETWORKS: dict[str, type[Learner]] = {"co_teaching": CoTeachingLearner, "divide_mix": DivideMixLearner}
_FORWARD_OPTIONS = ("warm_up", "percentile")


def learner_class(method: MethodName) -> type[Learner]:
    """The class of a method."""
    return _TWO_NETWORKS.get(method, LossLearner)


def build_learner(
    method: MethodName,
    options: MethodOptions | None,
    *,
    networks: Sequence[nn.Module],
    num_classes: int,
    num_samples: int,
    mixup: float = 0.0,
    aux_weight: float = 0.4,
) -> Learner:
    """Build a method.

    Args:
        method: Its name.
        options: Its options.
        networks: As many networks as its class needs.
        num_classes: Number of classes.
        num_samples: Size of the training set.
        mixup: α of mixup; 0 for none.
        aux_weight: Weight of the losses of auxiliary heads.

    Raises:
        UserError: An option does not belong to the method or is out of its range.
    """
    if mixup < 0:
        raise UserError(f"model.mixup: expected a number ≥ 0, got {mixup}")
    given: dict[str, Any] = {**(options or {})}
    try:
        if method in _TWO_NETWORKS:
            fixed = _fixed(method, num_classes, mixup)
            _check_options(method, given, fixed)
            return _TWO_NETWORKS[method](networks, aux_weight, **fixed, **given)
        if method != "forward":
            loss = build_loss(method, num_classes=num_classes, num_samples=num_samples, options=_typed(given))
            return LossLearner(networks, aux_weight, loss, mixup)
        own = {name: given.pop(name) for name in _FORWARD_OPTIONS if name in given}
        given["transition"] = read_transition(given.get("transition"))
        loss = build_loss(method, num_classes=num_classes, num_samples=num_samples, options=_typed(given))
        is_given = given["transition"] is not None
        return ForwardLearner(
            networks, aux_weight, cast(ForwardCorrection, loss), mixup, is_given=is_given, **own
        )
    except ValueError as error:
        raise UserError(f"model.loss_options for method {method!r}: {error}") from error


def read_transition(transition: list[list[float]] | str | None) -> list[list[float]] | None:
    """A transition matrix as it is, or from a CSV or YAML file of its rows.

    Raises:
        UserError: The file cannot be read or holds something else.
    """
    if not isinstance(transition, str):
        return transition
    path, key = Path(transition).expanduser(), "model.loss_options.transition"
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            rows = [line.split(",") for line in text.splitlines() if line.strip()]
        else:
            rows = yaml.safe_load(text)
        matrix = [[float(number) for number in row] for row in rows]
    except OSError as error:
        raise UserError(f"{key}: cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{key}: expected rows of numbers in {path}: {error}") from error
    if len({len(row) for row in matrix}) != 1:
        raise UserError(f"{key}: expected rows of one length in {path}")
    return matrix


def _fixed(method: str, num_classes: int, mixup: float) -> dict[str, Any]:
    """Arguments of a learner with two networks that are no options."""
    if method == "co_teaching":
        return {"alpha": mixup}
    if mixup:
        raise UserError(
            f"model.mixup: expected 0 with {method}, which mixes by itself (loss_options.alpha), got {mixup}"
        )
    return {"num_classes": num_classes}


def _check_options(method: str, given: dict[str, Any], fixed: dict[str, Any]) -> None:
    known = {"networks", "aux_weight", *fixed}
    own = [name for name in inspect.signature(_TWO_NETWORKS[method]).parameters if name not in known]
    unknown = next((name for name in given if name not in own), None)
    if unknown:
        raise ValueError(f"expected one of {', '.join(own)}, got {unknown!r}")


def _typed(options: dict[str, Any]) -> LossOptions:
    return cast(LossOptions, options)
