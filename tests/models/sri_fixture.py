"""SRI with the fixture's weights (specification §13)."""

from math import log
from typing import Any

import torch

from lightning_genesis.interop.sri import sri_key
from lightning_genesis.models import SRI
from tests.reference.slot_attention import fixture_parameter
from tests.reference.sri import official_keys

SMALL: dict[str, Any] = {
    "scene_dim": 12,
    "hidden_dim": 16,
    "encoder_options": {"latent_dim": 8, "feature_dim": 8},
}


def fixture_model(num_slots: int = 9, image_size: int = 64, **options: Any) -> SRI:
    """A model with the fixture's weights, in training mode."""
    model = SRI(num_slots, image_size, **options)
    parameters = dict(model.named_parameters())
    keys = official_keys({64: 5, 96: 5, 128: 6}[image_size])
    names = [sri_key(key) for key in keys]
    assert set(names) == set(parameters)
    with torch.no_grad():
        for position, (key, name) in enumerate(zip(keys, names, strict=True)):
            if key.endswith("gate.gate"):
                parameters[name].fill_(0.5)
            elif key.endswith("log_sigma"):
                parameters[name].fill_(log(1.0 / (num_slots * log(2.0))))
            else:
                parameters[name].copy_(fixture_parameter(position, key, parameters[name]))
    return model.train()
