"""Buffers of a model on several ranks."""

from collections.abc import Sequence

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def leave_to_each_rank(model: nn.Module, names: Sequence[str]) -> None:
    """Keeps DDP from sending parameters and buffers, by their names in the model, to other ranks."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [*names])


def send_buffers(wrapper: nn.Module | None) -> None:
    """Sends the buffers of rank 0 to all ranks, before an evaluation.

    DDP would do so at a rank's first batch, but a rank may have none, and the others would wait for it.

    Args:
        wrapper: what the strategy wraps the model in; nothing is done where it is not DDP's.
    """
    if isinstance(wrapper, DistributedDataParallel):
        if wrapper.will_sync_module_buffers():
            wrapper._sync_buffers()
        wrapper.require_forward_param_sync = False  # until the next step
