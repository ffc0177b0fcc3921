"""Names of the published MONet checkpoints (specification §9.4)."""

from typing import Any

import pytest

from lightning_genesis.interop.monet import monet_key
from lightning_genesis.models import MONet
from tests.reference.monet import legacy_key, official_keys


def test_published_model_has_61_entries() -> None:
    keys = official_keys(buffers=True)
    assert len(keys) == len(set(keys)) == 61


@pytest.mark.parametrize(("image_size", "num_blocks"), [(32, 4), (64, 5), (128, 6)])
@pytest.mark.parametrize("legacy", [False, True])
def test_names_are_a_bijection(image_size: int, num_blocks: int, legacy: bool) -> None:
    keys = official_keys(num_blocks)
    if legacy:
        assert [legacy_key(key) for key in keys] != keys
        keys = [legacy_key(key) for key in keys]
    ours = [monet_key(key) for key in keys]
    model = MONet(5, image_size, std=0.11, background_std=0.09)
    assert len(set(ours)) == len(ours)
    assert set(ours) == {key for key in model.state_dict() if not key.startswith("objective.")}


def test_order_of_parameters_is_the_published_one() -> None:
    """The official optimiser state is indexed by it."""
    assert [monet_key(key) for key in official_keys()] == [
        name for name, _ in MONet(5, 64).named_parameters()
    ]


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return MONet(7, 64).state_dict()


@pytest.mark.parametrize(
    ("official", "shape"),
    [
        ("att_process.core.down.0.0.weight", (32, 4, 3, 3)),
        ("att_process.core.down.2.0.weight", (64, 32, 3, 3)),
        ("att_process.core.down.4.conv.weight", (64, 64, 3, 3)),
        ("att_process.core.down.4.instance_norm.bias", (64,)),
        ("att_process.core.up.1.0.weight", (64, 128, 3, 3)),
        ("att_process.core.up.2.0.weight", (32, 128, 3, 3)),
        ("att_process.core.up.4.1.weight", (32,)),
        ("att_process.core.mlp.1.weight", (128, 1024)),
        ("att_process.core.mlp.5.bias", (1024,)),
        ("att_process.core.final_conv.weight", (1, 32, 1, 1)),
        ("comp_vae.encoder_module.module.0.weight", (32, 4, 3, 3)),
        ("comp_vae.encoder_module.module.4.weight", (64, 32, 3, 3)),
        ("comp_vae.encoder_module.module.9.weight", (256, 1024)),
        ("comp_vae.encoder_module.module.11.bias", (32,)),
        ("comp_vae.decoder_module.seq.1.weight", (32, 18, 3, 3)),
        ("comp_vae.decoder_module.seq.7.weight", (32, 32, 3, 3)),
        ("comp_vae.decoder_module.seq.9.weight", (4, 32, 1, 1)),
    ],
)
def test_shapes_are_the_published_ones(state: dict[str, Any], official: str, shape: tuple[int, ...]) -> None:
    assert state[monet_key(official)].shape == shape


@pytest.mark.parametrize(
    "key",
    [
        "std",
        "",
        "att_process.core.down.0.2.weight",
        "att_process.core.mlp.2.weight",
        "comp_vae.encoder_module.module.1.weight",
        "comp_vae.decoder_module.seq.2.weight",
        "comp_vae.decoder_module.seq.0.pixel_coords.g_1",
        "encoder.down.0.0.weight",
    ],
)
def test_unknown_name(key: str) -> None:
    with pytest.raises(KeyError, match="no parameter of the official MONet"):
        monet_key(key)
