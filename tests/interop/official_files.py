"""Checkpoint files in the form of the authors', made of models with the fixture's weights."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_genesis.interop.known_models import OFFICIAL
from lightning_genesis.models import SceneModel
from lightning_genesis.scene import Noise
from tests.models import genesis_fixture, monet_fixture, v2_fixture, vae_fixture
from tests.reference import FixtureNoise, genesis, genesis_v2, monet, vae

BUFFERS = ("std", "running_mean", "running_var", "num_batches_tracked")


@dataclass
class Case:
    """One of the authors' models with the fixture's weights."""

    model: Callable[[int], SceneModel]
    """Ours, for a size of images."""
    keys: Callable[[int], list[str]]
    """Official keys in registration order, for that size."""
    noise: Callable[[], Noise]
    error: tuple[float, float]
    """Negative log-likelihood of the fixture's two images in evaluation mode (specification §12)."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """What `load_official` has to be told."""


def _blocks(size: int) -> int:
    return {32: 4, 64: 5, 128: 6}[size]


CASES = {
    "genesisv2": Case(
        lambda size: v2_fixture.fixture_model(7, size),
        lambda size: genesis_v2.official_keys(_blocks(size)),
        FixtureNoise,
        (8353.96, 8353.64),
        {"num_slots": 7},
    ),
    "genesis": Case(
        lambda size: genesis_fixture.fixture_model(5, size),
        lambda size: genesis.official_keys(buffers=True),
        genesis_fixture.ForwardNoise,
        (8223.84, 8200.49),
    ),
    "genesis-s": Case(
        lambda size: genesis_fixture.fixture_model(5, size, two_stage=False),
        lambda size: genesis.official_keys(two_stage=False, buffers=True),
        genesis_fixture.ForwardNoise,
        (8125.16, 8266.76),
        {"image_size": 64},
    ),
    "monet": Case(
        lambda size: monet_fixture.fixture_model(5, size),
        lambda size: monet.official_keys(_blocks(size), buffers=True),
        monet.SlotMajorNoise,
        (8026.68, 8056.96),
    ),
    "dc-vae": Case(
        lambda size: vae_fixture.fixture_model("deconv", size),
        lambda size: vae.official_keys("deconv"),
        FixtureNoise,
        (7964.61, 7971.97),
        {"image_size": 64},
    ),
    "bd-vae": Case(
        lambda size: vae_fixture.fixture_model("broadcast", size),
        lambda size: vae.official_keys("broadcast"),
        FixtureNoise,
        (8053.53, 8041.16),
        {"image_size": 64},
    ),
}


def official_state(name: str, model: SceneModel, keys: Sequence[str]) -> "OrderedDict[str, Tensor]":
    """The state dict that the authors' model would have; `std` is 0.7 unless it is set in the model."""
    ours = model.state_dict()
    std = torch.full((1, 1, 1, 1, model.num_slots), 0.7)
    return OrderedDict(
        (key, std if key == "std" else ours[OFFICIAL[name].rename(key)].clone()) for key in keys
    )


def trained_optimizer(
    state: "OrderedDict[str, Tensor]", kind: str = "Adam", **options: Any
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """State of an optimiser over stand-ins in the official order after three steps, and by key."""
    keys = [key for key in state if not key.endswith(BUFFERS)]
    parameters = [nn.Parameter(state[key].clone()) for key in keys]
    optimizer = getattr(torch.optim, kind)(parameters, **{"lr": 3e-4, **options})
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    by_key = {key: optimizer.state[parameter] for key, parameter in zip(keys, parameters, strict=True)}
    return optimizer.state_dict(), by_key


def write_file(path: Path, state: "OrderedDict[str, Tensor]", **contents: Any) -> Path:
    """An official file; `contents` are optimiser, β and so on, where they are not None."""
    contents = {"beta": torch.tensor(0.9), "err_ema": torch.tensor(7000.0), "iter_idx": 2, **contents}
    contents = {"model_state_dict": state, **{k: v for k, v in contents.items() if v is not None}}
    torch.save(contents, path)
    return path
