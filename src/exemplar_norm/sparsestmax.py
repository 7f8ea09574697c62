"""Sparsestmax: the projection on the simplex outside a growing sphere, which ends in a single choice.

Legend: K entries, in the last dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def circumradius(num_entries: int) -> float:
    """sqrt((K − 1) / K): distance from the simplex's centre to its corners, where only those are left."""
    return math.sqrt((num_entries - 1) / num_entries)


def sparsemax(z: Tensor, support: Tensor | None = None) -> Tensor:
    """The point of the probability simplex nearest to z (…, K), with entries outside `support` at zero.

    p = max(z − τ, 0) with τ such that Σ p = 1.

    Source: Martins and Astudillo, *From Softmax to Sparsemax*, ICML 2016, arXiv:1602.02068.
    """
    if support is not None:
        # Far enough below the others to stay outside, near enough to cost no digits.
        z = torch.where(support, z, z.detach().amin(-1, keepdim=True) - 2.0)
    ordered, _ = torch.sort(z, dim=-1, descending=True)
    above = torch.cumsum(ordered, -1) - 1.0
    rank = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    inside = (ordered * rank > above).sum(-1, keepdim=True)
    return torch.clamp(z - above.gather(-1, inside - 1) / inside, min=0.0)


def sparsestmax(z: Tensor, radius: Tensor) -> Tensor:
    """The point of the probability simplex nearest to z (…, K) at a distance ≥ `radius` from its centre.

    With radius 0 it is sparsemax; with the circumradius it is one-hot. Between, sparsemax(z) is pushed
    away from the centre u to the sphere, p = u + r (p − u) / ‖p − u‖, and where that leaves the simplex,
    projected on the face it left through and pushed again from that face's centre, within that face. A tie
    between all entries goes to the first. Once p is one-hot, its gradient is exactly zero.

    Args:
        z: (…, K) logits.
        radius: scalar in [0, circumradius(K)].

    Source: Shao et al., *SSN: Learning Sparse Switchable Normalization via SparsestMax*, CVPR 2019,
    arXiv:1903.03793; written for any K.
    """
    p = sparsemax(z)
    support = torch.ones_like(z, dtype=torch.bool)
    for _ in range(z.shape[-1] - 1):  # every turn that does not end it loses an entry
        pushed = _push(p, support, radius)
        left = (pushed < 0).any(-1, keepdim=True)
        p = torch.where(left, sparsemax(pushed, support), pushed)
        support = support & (~left | (p > 0))
    # Rounding alone keeps a corner a few units in the last place away.
    is_one_hot = p.detach().amax(-1, keepdim=True) >= 1.0 - 16 * torch.finfo(p.dtype).eps
    return torch.where(is_one_hot, p.detach().round(), p)


def _push(p: Tensor, support: Tensor, radius: Tensor) -> Tensor:
    """Move p along its ray from the centre of the face `support` to the sphere, if it lies inside."""
    size = support.sum(-1, keepdim=True).to(p.dtype)
    centre = support.to(p.dtype) / size
    # Pythagoras: the sphere around the simplex's centre cuts the face in one around the face's centre.
    face_radius = torch.sqrt(torch.clamp(radius**2 - (1.0 / size - 1.0 / p.shape[-1]), min=0.0))
    ray = p - centre
    squared = ray.square().sum(-1, keepdim=True)
    at_centre = squared < torch.finfo(p.dtype).eps ** 2
    length = torch.sqrt(torch.where(at_centre, 1.0, squared))
    # At the centre no direction is nearer than another; the ray, zero there, is kept for its gradient,
    # without which equal logits would never part.
    on_sphere = centre + torch.where(
        at_centre, face_radius * _to_first(support, centre) + ray, face_radius * ray / length
    )
    inside = torch.where(at_centre, 0.0, squared) < face_radius**2
    return torch.where(inside, on_sphere, p)


def _to_first(support: Tensor, centre: Tensor) -> Tensor:
    """Unit vector from a face's centre to its first corner (zero where the face is a corner)."""
    first = torch.zeros_like(centre).scatter(-1, support.to(torch.uint8).argmax(-1, keepdim=True), 1.0)
    ray = first - centre
    return ray / torch.clamp(
        torch.linalg.vector_norm(ray, dim=-1, keepdim=True), min=torch.finfo(ray.dtype).tiny
    )
