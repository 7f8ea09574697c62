"""`sync_norm`: make a network's batch statistics span the ranks of a process group."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.distributed import ProcessGroup

from exemplar_norm.base import MomentLayer
from exemplar_norm.batch import BatchNorm
from exemplar_norm.replace import replacement, swap
from exemplar_norm.sources import Source, is_other_norm, placement, read_source, shared_tensors


def sync_norm(model: nn.Module, process_group: ProcessGroup | None = None) -> nn.Module:
    """Take every "bn" of `model` over all ranks in training, in place.

    Layers of the family are switched to `sync=True`. PyTorch's BatchNorm becomes `nn.SyncBatchNorm` where
    its tensors are on a GPU, and elsewhere the family's BatchNorm, which does the same on any device.
    Batch and map sizes may differ from rank to rank. State-dict names stay as they are.

    Args:
        model: any network, before it is wrapped for data parallelism.
        process_group: the ranks to span; None for all.

    Returns:
        `model`, or its replacement where it is itself a BatchNorm.

    Raises:
        ValueError: no layer takes statistics over the batch; a layer carries hooks, parametrizations, tied
            parameters or a forward of its own, which would be lost; or it keeps no running statistics. The
            model is then unchanged.
    """

    def make(source: Source) -> nn.Module:
        device, _ = placement(source.module, model)
        on_gpu = device is not None and device.type == "cuda"
        build = nn.SyncBatchNorm if on_gpu else partial(BatchNorm, sync=True)
        return build(
            source.num_features, eps=source.options["eps"], momentum=source.options["momentum"],
            affine=source.weight is not None, process_group=process_group,
        )  # fmt: skip

    members: list[MomentLayer | nn.SyncBatchNorm] = []
    replacements: dict[nn.Module, nn.Module] = {}
    shared = shared_tensors(model)
    left: set[nn.Module] = set()  # layers that are left alone, with their parts
    for name, module in model.named_modules():
        source = read_source(module)
        if module in left:
            continue
        if isinstance(module, nn.SyncBatchNorm) or (
            isinstance(module, MomentLayer) and "bn" in module.normalizers
        ):
            members.append(module)
        elif source is not None and source.normalizer == "bn":
            if getattr(module, "running_mean", None) is None:
                raise ValueError(
                    f"{name or 'model'}: expected track_running_stats=True to synchronise, got False"
                )
            replacements[module] = replacement(name, source, make, model, True, shared)
        elif is_other_norm(module):
            left.update(module.modules())
    if not members and not replacements:
        raise ValueError("sync_norm: expected layers that take statistics over the batch, found none")
    for module in members:
        module.process_group = process_group
        if isinstance(module, MomentLayer):
            module.sync = True
    return swap(model, replacements)
