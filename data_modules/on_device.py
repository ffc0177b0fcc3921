"""Training images that lie on the device: no copy, no loader between them and a step."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_modules.disk import size_text
from data_modules.store import DataError, Store

CHUNK = 2**26
"""Bytes that are read at once."""
LEFT = 0.5
"""Share of a GPU's free memory that the images may take; the rest is the model's."""


class DeviceDataset(Dataset[dict[str, Tensor]]):
    """All images of a store as one tensor on a device; `dataset.__getitems__(indices)` is a batch.

    A batch has `image` and `index` alone, which is what training reads. The images are compared with the
    store's checksums as they are read.

    Args:
        store: of the training images.
        device: that trains.

    Raises:
        DataError: if the store is damaged, or too large for the device.
    """

    def __init__(self, store: Store, device: torch.device) -> None:
        self.store, self.device = store, device
        shape = store.arrays["images"].shape
        size = int(np.prod(shape))
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if size > LEFT * free:
                raise DataError(
                    f"on_device: the training images are {size_text(size)}, expected at most half of the "
                    f"{size_text(free)} that are free on {device}; leave it out"
                )
        count, height, width, channels = shape
        self.images = torch.empty((count, channels, height, width), dtype=torch.uint8, device=device)
        step = max(1, CHUNK * count // size)
        for start in range(0, count, step):
            some = [*range(start, min(start + step, count))]
            self.images[some[0] : some[-1] + 1] = torch.from_numpy(store.read(some)["images"]).movedim(-1, 1)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        index = torch.tensor(indices)
        if self.device.type == "cuda":  # pageable memory would be waited for
            index = index.pin_memory().to(self.device, non_blocking=True)
        return {"image": self.images[index], "index": index}
