"""The fixture behind the reference values of the published implementations."""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def fixture_parameter(key: str, value: Tensor) -> Tensor:
    """Value that the fixture gives a parameter by its official name; some keep their initial value."""
    if key.endswith("gate.gate"):
        return torch.full_like(value, 0.5)
    if key.endswith(("log_sigma", "num_batches_tracked")) or key == "std":
        return value
    u = np.random.RandomState(zlib.crc32(key.encode())).uniform(-1.0, 1.0, tuple(value.shape))
    if value.ndim >= 2:
        u = u * np.sqrt(3.0 / (value.numel() / value.shape[0]))
    elif key.endswith(("weight", "running_var")):
        u = 1.0 + 0.1 * u
    else:
        u = 0.1 * u
    return torch.from_numpy(u).to(value.dtype)


def fill_with_fixture(
    module: torch.nn.Module, official_keys: Sequence[str], rename: Callable[[str], str]
) -> None:
    """Loads the fixture into `module`, whose names are `rename(official key)`; strict."""
    state = {k: v for k, v in module.state_dict().items() if not k.startswith("objective.")}
    filled = {rename(key): fixture_parameter(key, state[rename(key)]) for key in official_keys}
    assert set(filled) == set(state), set(filled) ^ set(state)
    module.load_state_dict(filled, strict=False)


def images(size: int = 64, batch: int = 2) -> Tensor:
    """The fixture's images."""
    return torch.from_numpy(np.random.RandomState(1234).uniform(0, 1, (batch, 3, size, size))).float()


class FixtureNoise:
    """Draw i of a standard normal is `RandomState(1000 + i)`; several slots' draws are stacked on axis 1."""

    def __init__(self, batch: int = 2) -> None:
        self.count, self.batch = 0, batch

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """The fixture's seed scores."""
        scores = np.random.RandomState(99).uniform(0, 1, (2, *shape[1:]))
        return torch.from_numpy(scores[: shape[0]]).to(like)

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """One draw `[B, D]`, or K of them `[B, K, D]`."""
        if len(shape) == 3:
            return torch.stack([self.normal((shape[0], shape[2]), like) for _ in range(shape[1])], dim=1)
        draw = np.random.RandomState(1000 + self.count).standard_normal((2, *shape[1:]))
        self.count += 1
        return torch.from_numpy(draw[: shape[0]]).to(like)
