"""EfficientMORL with the fixture's weights (specification §13)."""

from typing import Any

from lightning_genesis.interop.emorl import emorl_state
from lightning_genesis.models import EfficientMORL
from lightning_genesis.objectives import Objective
from tests.reference.emorl import official_state

TETROMINOES: dict[str, Any] = {
    "num_slots": 4,
    "image_size": 35,
    "latent_dim": 32,
    "decoder": "small",
    "decoder_dim": 32,
    "likelihood": "gaussian",
    "std": 0.3,
    "num_refinements": 3,
    "final_refinements": 3,
}
CLEVR6: dict[str, Any] = {"num_slots": 7, "image_size": 96, "num_refinements": 1, "final_refinements": 1}


def fixture_model(options: dict[str, Any], objective: Objective, **changed: Any) -> EfficientMORL:
    """A model in training mode; the fixture's batch is of two images."""
    options = {"refinement_batch_size": 2, **options, "objective": objective, **changed}
    model = EfficientMORL(**options)
    official = official_state(model.hparams["decoder"], model.latent_dim)
    state = emorl_state({key: value.numpy() for key, value in official.items()})
    expected = {name for name in model.state_dict() if not name.startswith("objective.")}
    assert state.keys() == expected
    model.load_state_dict(state, strict=False)
    return model.train()
