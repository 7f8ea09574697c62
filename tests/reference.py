"""Float64 loop oracle of the layers: slow, plain, written from the published formulas alone.

Every statistic is taken by definition over the exact positions of the input that it covers; nothing here
uses the identity through instance moments that the package is built on. All is differentiable torch, so
autograd gives the oracle's gradients (and their gradients). ``params`` is a layer's ``state_dict()``, or
tensors under the same names.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Params = Mapping[str, Tensor]


def mean_and_var(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of all the values."""
    mean = values.sum() / values.numel()
    var = ((values - mean) ** 2).sum() / values.numel()
    return mean, var


def statistics(
    x: Tensor, params: Params, normalizer: str, n: int, c: int, *, groups: int, training: bool
) -> tuple[Tensor, Tensor]:
    """Mean and variance by which ``normalizer`` normalizes channel ``c`` of sample ``n``."""
    if normalizer == "in":
        return mean_and_var(x[n, c])
    if normalizer == "ln":
        return mean_and_var(x[n])
    if normalizer == "gn":
        size = x.shape[1] // groups
        first = c // size * size
        return mean_and_var(x[n, first : first + size])
    if normalizer == "bn":
        if training:
            return mean_and_var(x[:, c])
        return params["running_mean"][c], params["running_var"][c]
    raise AssertionError(normalizer)


def gate(
    descriptor_KD: list[list[Tensor]], params: Params, correlations: str = "plain", rate: float = 1.0
) -> list[Tensor]:
    """One sample's λ: grouped 1×1 reduction, correlations of the K rows, tanh layer, softmax.

    ``rate`` multiplies the gradients of the last layer.
    """
    K = len(descriptor_KD)
    conv = params["gate.conv.weight"]
    outputs, width = conv.shape[0], conv.shape[1]
    z = [
        [sum(conv[j, i, 0] * row[j * width + i] for i in range(width)) for j in range(outputs)]
        for row in descriptor_KD
    ]
    v = [sum(a * b for a, b in zip(z[k], z[q], strict=True)) for k in range(K) for q in range(K)]

    if correlations == "scale_free":
        size = sum(v[k * K + k] for k in range(K)) / K
        v = [value / (size + 1e-6) for value in v]
    if correlations == "standardised":
        pairs = zip(params["gate.correlation_mean"], params["gate.correlation_var"], strict=True)
        v = [
            (value - mean) / torch.sqrt(var + (1e-3 * mean) ** 2) if var > 1e-12 else 0 * value
            for value, (mean, var) in zip(v, pairs, strict=True)
        ]

    w1, b1 = params["gate.fc1.weight"], params["gate.fc1.bias"]
    w2, b2 = params["gate.fc2.weight"], params["gate.fc2.bias"]
    w2, b2 = (rate * value + (1 - rate) * value.detach() for value in (w2, b2))
    h = [torch.tanh(sum(w1[i, j] * v[j] for j in range(K * K)) + b1[i]) for i in range(w1.shape[0])]
    logits = [sum(w2[k, i] * h[i] for i in range(len(h))) + b2[k] for k in range(K)]
    # λ does not change when all logits move together; this keeps exp in range.
    top = max(float(logit.detach()) for logit in logits)
    exps = [torch.exp(logit - top) for logit in logits]
    return [e / sum(exps) for e in exps]


def exemplar_norm(
    x: Tensor,
    params: Params,
    normalizers: Sequence[str],
    *,
    groups: int = 32,
    eps: float = 1e-5,
    training: bool = True,
    descriptor: str = "mean",
    correlations: str = "plain",
    gate_rate: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Exemplar Normalization in float64: y of x's shape and λ (N, K)."""
    x, params = x.double(), {name: value.double() for name, value in params.items()}
    weight, bias = params["weight"], params["bias"]
    N, C, K = x.shape[0], x.shape[1], len(normalizers)

    outputs, ratios = [], []
    for n in range(N):
        pooled = [mean_and_var(x[n, c]) for c in range(C)]
        stats = [
            [statistics(x, params, k, n, c, groups=groups, training=training) for c in range(C)]
            for k in normalizers
        ]
        rows = []
        for k in range(K):
            row = [(pooled[c][0] - stats[k][c][0]) / torch.sqrt(stats[k][c][1] + eps) for c in range(C)]
            if descriptor == "mean_std":
                row += [torch.sqrt((pooled[c][1] + eps) / (stats[k][c][1] + eps)) for c in range(C)]
            rows.append(row)
        ratio = gate(rows, params, correlations, gate_rate)

        channels = []
        for c in range(C):
            y = torch.zeros_like(x[n, c])
            for k in range(K):
                mean, var = stats[k][c]
                y = y + weight[k, c] * ratio[k] * (x[n, c] - mean) / torch.sqrt(var + eps) + bias[k, c]
            channels.append(y)
        outputs.append(torch.stack(channels))
        ratios.append(torch.stack(ratio))
    return torch.stack(outputs), torch.stack(ratios)


def switch_norm(
    x: Tensor,
    params: Params,
    normalizers: Sequence[str],
    *,
    groups: int = 32,
    eps: float = 1e-5,
    training: bool = True,
) -> Tensor:
    """Switchable Normalization in float64: one mixture for the means, one for the variances."""
    x, params = x.double(), {name: value.double() for name, value in params.items()}
    N, C, K = x.shape[0], x.shape[1], len(normalizers)

    def softmax(logits: Tensor) -> list[Tensor]:
        exps = [torch.exp(logits[k] - logits.detach().max()) for k in range(K)]
        return [e / sum(exps) for e in exps]

    w_mean, w_var = softmax(params["mean_weight"]), softmax(params["var_weight"])
    outputs = []
    for n in range(N):
        channels = []
        for c in range(C):
            stats = [statistics(x, params, k, n, c, groups=groups, training=training) for k in normalizers]
            mean = sum(w_mean[k] * stats[k][0] for k in range(K))
            var = sum(w_var[k] * stats[k][1] for k in range(K))
            y = params["weight"][c] * (x[n, c] - mean) / torch.sqrt(var + eps) + params["bias"][c]
            channels.append(y)
        outputs.append(torch.stack(channels))
    return torch.stack(outputs)


def update_running(x: Tensor, buffers: Params, momentum: float | None) -> dict[str, Tensor]:
    """The buffers after one training forward on ``x``, as ``nn.BatchNorm2d`` moves them.

    ``momentum=None`` is the cumulative average. With one value per channel the unbiased variance does not
    exist: running_mean moves and running_var stays.
    """
    x = x.detach().double()
    steps = int(buffers["num_batches_tracked"]) + 1
    factor = 1 / steps if momentum is None else momentum
    running_mean = buffers["running_mean"].double().clone()
    running_var = buffers["running_var"].double().clone()
    for c in range(x.shape[1]):
        mean, var = mean_and_var(x[:, c])
        count = x[:, c].numel()
        running_mean[c] = (1 - factor) * running_mean[c] + factor * mean
        if count > 1:
            running_var[c] = (1 - factor) * running_var[c] + factor * var * count / (count - 1)
    return {
        "running_mean": running_mean,
        "running_var": running_var,
        "num_batches_tracked": torch.tensor(steps),
    }
