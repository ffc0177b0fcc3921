"""What ranks send each other of a model besides its gradients: as little as is exact."""

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel


def _running(model: nn.Module) -> dict[str, Tensor]:
    """Running means of normalisations, by name."""
    parts = [(name, part) for name, part in model.named_modules() if isinstance(part, _NormBase)]
    return {
        f"{name}.{key}": value for name, part in parts for key, value in part.named_buffers(recurse=False)
    }


def not_in_every_forward(model: nn.Module) -> list[str]:
    """Names of the buffers that DDP need not send from rank 0 to all before every forward.

    - Those that no checkpoint holds, such as grids of coordinates: every rank has made the same.
    - The objective's: β is the same on all ranks already, and must not change between a forward and its
      backward.
    - Running means: training does not read them, and rank 0's come from its own batches either way. Others
      get them before an evaluation, by `send_buffers`.

    A model's other buffers are sent, as DDP does.
    """
    found = [f"objective.{name}" for name, _ in model.get_submodule("objective").named_buffers()]
    for name, part in model.named_modules():
        prefix = f"{name}." if name else ""
        found += [f"{prefix}{key}" for key in part._non_persistent_buffers_set]
    return sorted({*found, *_running(model)})


def send_buffers(model: nn.Module, wrapper: nn.Module | None) -> None:
    """Sends the buffers of rank 0, such as running means, to all ranks, before they evaluate.

    DDP would do so at a rank's first batch, but a rank may have none, and the others would wait for it.

    Args:
        model: of this rank.
        wrapper: what the strategy made of it.
    """
    if not isinstance(wrapper, DistributedDataParallel):
        return
    for buffer in _running(model).values():
        dist.broadcast(buffer, 0)
    if wrapper.will_sync_module_buffers():
        wrapper._sync_buffers()
    wrapper.require_forward_param_sync = False  # until the next step
