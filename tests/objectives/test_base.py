"""Objectives as plain data, and back."""

import json
from typing import Any

import pytest

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import GenesisV2
from lightning_genesis.objectives import GECO, FixedBeta, Objective
from lightning_genesis.objectives.base import objective_from_plain


@pytest.mark.parametrize(
    "objective", [GECO(), GECO(goal=0.4, beta=1e-4, beta_max=7.0), FixedBeta(), FixedBeta(0.1, 20)]
)
def test_round_trip(objective: Objective) -> None:
    plain = json.loads(json.dumps(objective.plain()))
    again = objective_from_plain(plain)
    assert type(again) is type(objective)
    assert again.plain() == objective.plain()


def test_plain_form_names_class_and_arguments() -> None:
    assert FixedBeta(0.1, 20).plain() == {
        "class_path": "lightning_genesis.objectives.fixed_beta.FixedBeta",
        "init_args": {"beta": 0.1, "warmup_steps": 20},
    }


@pytest.mark.parametrize(
    "class_path", ["os.system", "torch.nn.Linear", "lightning_genesis.objectives.base.Objective", "", None]
)
def test_other_classes_are_refused(class_path: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is unknown: use one of .*GECO") as raised:
        objective_from_plain({"class_path": class_path, "init_args": {"command": "true"}})
    assert "\n" not in str(raised.value)


def test_model_keeps_it_as_plain_data() -> None:
    options: dict[str, Any] = {"num_slots": 2, "image_size": 32, "latent_dim": 8, "feature_dim": 8}
    model = GenesisV2(**options, objective=GECO(goal=0.4))
    assert model.hparams["objective"] == GECO(goal=0.4).plain()
    again = GenesisV2(**model.hparams)
    assert isinstance(again.objective, GECO)
    assert again.objective.goal == 0.4
    assert again.hparams == model.hparams
    default = GenesisV2(**options)
    assert default.hparams["objective"] == GECO().plain()
    assert default.state_dict().keys() >= {"objective.beta", "objective.average", "objective.step"}
