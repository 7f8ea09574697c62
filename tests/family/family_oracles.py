"""Float64 loop oracles of the layers that ``tests/reference.py`` leaves out, from their definitions.

SSN and cBN reuse the reference's statistics (each taken over the exact positions it covers). Sparsestmax is
solved as what it is defined as, a nearest-point problem, by looking at every face of the simplex.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from tests import reference

Params = Mapping[str, Tensor]


def sparsestmax(z: Tensor, radius: float) -> Tensor:
    """argmin ‖p − z‖² over {p ≥ 0, Σ p = 1, ‖p − u‖ ≥ radius}, u the centre of the simplex.

    The minimum lies inside some face. There it is either the projection of z on the face's plane, or one of
    the two points where the line from the face's centre through that projection meets the sphere. All of them
    are tried, and the nearest that is feasible is the answer, as a differentiable function of z.
    """
    z = z.double()
    K = len(z)
    best, best_distance = None, math.inf
    for size in range(1, K + 1):
        for face in combinations(range(K), size):
            for p in _critical_points(z, list(face), radius):
                outside = math.sqrt(float((p.detach() - 1 / K).square().sum()))
                feasible = float(p.detach().min()) >= -1e-12 and outside >= radius - 1e-12
                distance = float((p.detach() - z.detach()).square().sum())
                if feasible and distance < best_distance - 1e-13:
                    best, best_distance = p, distance
    assert best is not None
    return best


def _critical_points(z: Tensor, face: list[int], radius: float) -> list[Tensor]:
    K, size = len(z), len(face)
    on_face = torch.zeros(K, dtype=z.dtype)
    on_face[face] = 1.0
    projection = on_face * (z - (z[face].sum() - 1) / size)
    centre = on_face / size
    # ‖p − u‖² = ‖p − centre‖² + ‖centre − u‖² for p on the face, and ‖centre − u‖² = 1/size − 1/K.
    squared = radius**2 - (1 / size - 1 / K)
    ray = projection - centre
    length = ray.square().sum().sqrt()
    if squared < 0 or float(length.detach()) == 0:
        return [projection]
    step = math.sqrt(squared) * ray / length
    return [projection, centre + step, centre - step]


def sparsemax(z: Tensor) -> Tensor:
    """Euclidean projection on the simplex, by bisection on the threshold τ of p = max(z − τ, 0)."""
    z = z.detach()
    low, high = float(z.min()) - 1, float(z.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((z - middle).clamp(min=0).sum()) > 1 else (low, middle)
    return (z - low).clamp(min=0)


def sparse_switch_norm(
    x: Tensor,
    params: Params,
    normalizers: Sequence[str],
    *,
    groups: int = 32,
    eps: float = 1e-5,
    training: bool = True,
) -> Tensor:
    """SN's formula with sparsestmax in place of softmax."""
    x, params = x.double(), {name: value.double() for name, value in params.items()}
    radius = float(params["radius"])
    w_mean, w_var = (sparsestmax(params[name], radius) for name in ("mean_weight", "var_weight"))
    samples = []
    for n in range(x.shape[0]):
        channels = []
        for c in range(x.shape[1]):
            stats = [
                reference.statistics(x, params, k, n, c, groups=groups, training=training)
                for k in normalizers
            ]
            mean = sum(w * s[0] for w, s in zip(w_mean, stats, strict=True))
            var = sum(w * s[1] for w, s in zip(w_var, stats, strict=True))
            normed = (x[n, c] - mean) / torch.sqrt(var + eps)
            channels.append(params["weight"][c] * normed + params["bias"][c])
        samples.append(torch.stack(channels))
    return torch.stack(samples)


def conditional_norm(x: Tensor, params: Params, *, eps: float = 1e-5, training: bool = True) -> Tensor:
    """BN whose γ and β get, for each sample, what a relu MLP makes of its channel means."""
    x, params = x.double(), {name: value.double() for name, value in params.items()}
    w1, b1, w2, b2 = (params[k] for k in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"))
    C = x.shape[1]
    samples = []
    for n in range(x.shape[0]):
        pooled = [reference.mean_and_var(x[n, c])[0] for c in range(C)]
        hidden = [torch.relu(sum(w1[i, c] * pooled[c] for c in range(C)) + b1[i]) for i in range(w1.shape[0])]
        delta = [sum(w2[j, i] * h for i, h in enumerate(hidden)) + b2[j] for j in range(2 * C)]
        channels = []
        for c in range(C):
            mean, var = reference.statistics(x, params, "bn", n, c, groups=1, training=training)
            normed = (x[n, c] - mean) / torch.sqrt(var + eps)
            channels.append((params["weight"][c] + delta[c]) * normed + params["bias"][c] + delta[C + c])
        samples.append(torch.stack(channels))
    return torch.stack(samples)


def batch_norm(x: Tensor, params: Params, *, eps: float = 1e-5, training: bool = True) -> Tensor:
    """BN, channel by channel."""
    x, params = x.double(), {name: value.double() for name, value in params.items()}
    channels = []
    for c in range(x.shape[1]):
        mean, var = reference.statistics(x, params, "bn", 0, c, groups=1, training=training)
        channels.append(params["weight"][c] * (x[:, c] - mean) / torch.sqrt(var + eps) + params["bias"][c])
    return torch.stack(channels, 1)


def union_statistics(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over all values of all parts, whatever their sizes."""
    values = pooled_values(parts)
    pairs = [reference.mean_and_var(values[:, c]) for c in range(values.shape[1])]
    means, variances = zip(*pairs, strict=True)
    return torch.stack(means), torch.stack(variances)


def pooled_values(parts: Sequence[Tensor]) -> Tensor:
    """All values of all parts (N, C, *spatial), as (number of values, C)."""
    return torch.cat([part.double().movedim(1, 0).flatten(1).T for part in parts])
