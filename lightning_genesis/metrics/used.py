"""Which metrics have values, on any process."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torchmetrics import Metric


def used_on_any_rank(metrics: Mapping[str, Metric], device: torch.device) -> list[str]:
    """Names of the metrics that any rank has updated, the same on all ranks.

    A rank without an image has to join in their reduction. All ranks have to call this.

    Args:
        metrics: by name, the same names in the same order on all ranks.
        device: for the message between ranks.
    """
    used = torch.tensor([metric.update_called for metric in metrics.values()], device=device).int()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(used, op=dist.ReduceOp.MAX)
    return [name for name, is_used in zip(metrics, used.tolist(), strict=True) if is_used]
