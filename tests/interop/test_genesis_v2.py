"""Names of the published GENESIS-V2 checkpoints (specification §9.1)."""

from typing import Any

import pytest

from lightning_genesis.interop.genesis_v2 import genesis_v2_key
from lightning_genesis.models import GenesisV2
from tests.reference.genesis_v2 import official_keys


def test_published_model_has_78_entries() -> None:
    assert len(official_keys()) == len(set(official_keys())) == 78


@pytest.mark.parametrize(
    ("image_size", "options"),
    [
        (32, {}),
        (64, {}),
        (128, {}),
        (64, {"semi_convolutional": False}),
        (64, {"autoregressive_prior": False}),
    ],
)
def test_names_are_a_bijection(image_size: int, options: dict[str, Any]) -> None:
    keys = official_keys(
        {32: 4, 64: 5, 128: 6}[image_size],
        options.get("semi_convolutional", True),
        options.get("autoregressive_prior", True),
    )
    ours = [genesis_v2_key(key) for key in keys]
    model = GenesisV2(7, image_size, **options)
    assert len(set(ours)) == len(ours)
    assert set(ours) == {key for key in model.state_dict() if not key.startswith("objective.")}


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return GenesisV2(7, 64).state_dict()


@pytest.mark.parametrize(
    ("official", "shape"),
    [
        ("encoder.down.4.0.weight", (128, 128, 3, 3)),
        ("encoder.up.0.0.weight", (128, 256, 3, 3)),
        ("encoder.up.2.0.weight", (64, 256, 3, 3)),
        ("encoder.up.3.0.weight", (64, 128, 3, 3)),
        ("encoder.mlp.5.weight", (2048, 128)),
        ("att_process.log_sigma", ()),
        ("att_process.colour_head.conv.weight", (8, 64, 1, 1)),
        ("seg_head.0.weight", (64, 64, 3, 3)),
        ("feat_head.1.weight", (128, 64, 1, 1)),
        ("z_head.3.weight", (128, 128)),
        ("decoder_module.1.weight", (66, 64, 5, 5)),
        ("decoder_module.13.weight", (4, 64, 1, 1)),
        ("prior_lstm.weight_ih_l0", (1024, 64)),
        ("prior_linear.weight", (128, 256)),
    ],
)
def test_shapes_are_the_published_ones(state: dict[str, Any], official: str, shape: tuple[int, ...]) -> None:
    assert state[genesis_v2_key(official)].shape == shape


@pytest.mark.parametrize("key", ["std", "encoderr.down.0.0.weight", "decoder_module.weight", ""])
def test_unknown_name(key: str) -> None:
    with pytest.raises(KeyError, match="no parameter of the official GENESIS-V2"):
        genesis_v2_key(key)
