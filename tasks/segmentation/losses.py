"""Losses of segmentation: cross-entropy over the labelled pixels, hard examples alone, mixed with Dice."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.segmentation.labels import IGNORE


class SegmentationLoss(nn.Module):
    """Σ wₚ · −log pₚ(yₚ) / Σ wₚ + `dice` · Dice loss, over the labelled pixels.

    wₚ is the weight of the pixel's class, 1 without `class_weights`; 0 where `ohem` leaves the pixel out. A
    batch without labelled pixels gives 0, with gradients.

    Args:
        class_weights: Weight of each class.
        ohem: Online hard example mining (Shrivastava et al., arXiv:1604.03540), as mmsegmentation has it:
            pixels count whose true class has a probability below this; None counts all.
        ohem_min_kept: Pixels an image that count at least, those of the lowest probabilities.
        dice: Weight of the Dice loss (Milletari et al., arXiv:1606.04797).
    """

    weights: Tensor | None

    def __init__(
        self,
        class_weights: list[float] | None = None,
        ohem: float | None = None,
        ohem_min_kept: int = 100_000,
        dice: float = 0.0,
    ) -> None:
        super().__init__()
        if class_weights is not None and not (min(class_weights, default=0) >= 0 < sum(class_weights)):
            raise ValueError(f"model.class_weights: expected numbers ≥ 0, not all 0, got {class_weights}")
        if ohem is not None and not 0 < ohem <= 1:
            raise ValueError(f"model.ohem: expected a probability above 0 or null, got {ohem}")
        if ohem_min_kept < 0:
            raise ValueError(f"model.ohem_min_kept: expected a number ≥ 0, got {ohem_min_kept}")
        if dice < 0:
            raise ValueError(f"model.dice: expected a number ≥ 0, got {dice}")
        self.register_buffer(
            "weights", torch.tensor(class_weights) if class_weights else None, persistent=False
        )
        self.ohem, self.ohem_min_kept, self.dice = ohem, ohem_min_kept, dice
        self.dice_loss = _dice_loss() if dice else None

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Loss of logits (N, C, H, W) and train ids (N, H, W)."""
        logits = logits.float()
        surprise = F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="none")
        is_labelled = masks != IGNORE
        if self.weights is None:
            weight = is_labelled.float()
        else:
            weight = self.weights[masks.where(is_labelled, 0)] * is_labelled
        if self.ohem is not None:
            weight = weight * self._is_hard((-surprise.detach()).exp(), is_labelled, self.ohem)
        total = weight.sum()
        loss = (surprise * weight).sum() / total.where(total > 0, 1)
        if self.dice_loss is not None:
            loss = loss + self.dice * cast(Tensor, self.dice_loss(logits, masks))
        return loss

    def _is_hard(self, probability: Tensor, is_labelled: Tensor, threshold: float) -> Tensor:
        """Pixels below the threshold, which rises until enough of them are below."""
        kept = self.ohem_min_kept * len(probability)
        probability = probability.masked_fill(~is_labelled, torch.inf)
        if kept >= probability.numel():
            return is_labelled
        least = probability.flatten().kthvalue(max(kept, 1)).values
        # With those that tie, or pixels of one probability would all be dropped.
        return probability <= least.clamp(min=threshold)


def _dice_loss() -> nn.Module:
    from segmentation_models_pytorch.losses import DiceLoss

    return cast(nn.Module, DiceLoss("multiclass", ignore_index=IGNORE))
