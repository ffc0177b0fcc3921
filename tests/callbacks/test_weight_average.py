"""The average of the weights: what it is, and that a resumed run goes on with it bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_genesis
from lightning_genesis.callbacks.weight_average import WeightAverage
from lightning_genesis.cli import main
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import MONet
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.test_changes import TINY

EMA = ["--trainer.callbacks", "lightning_genesis.callbacks.weight_average.WeightAverage"]
EMA += ["--trainer.callbacks.decay", "0.5"]


def test_average_resume_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    weights: list[dict[str, torch.Tensor]] = []
    original = MONet.training_step

    def watch(model: Any, batch: Any, batch_idx: int) -> Any:
        weights.append({name: value.detach().clone() for name, value in model.named_parameters()})
        return original(model, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(MONet, "training_step", watch)
        assert main(["fit", "--config", "tiny.yaml", "--run.name", "whole", *EMA]) == 0
    for steps in ("5", "8"):
        args = ["--run.name", "part", "--trainer.max_steps", steps, "--ckpt_path", "last"]
        assert main(["fit", "--config", "tiny.yaml", *args, *EMA]) == 0
    whole, part = (read_checkpoint(f"runs/{name}/checkpoints/last.ckpt") for name in ("whole", "part"))
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert repr(whole[key]) == repr(part[key]), key
    # by hand: the first update copies, each later one halves the distance
    weights = [*weights[1:], {name: whole["current_model_state"][name] for name in weights[0]}]
    for name in weights[0]:
        average = weights[0][name].double()
        for after in weights[1:]:
            average = 0.5 * average + 0.5 * after[name].double()
        torch.testing.assert_close(whole["state_dict"][name].double(), average, rtol=1e-5, atol=1e-7)
    # buffers are not averaged: β and the count are those of the run
    assert whole["state_dict"]["objective.step"] == whole["current_model_state"]["objective.step"] == 8
    assert main(["export", "runs/whole", "average.safetensors", "--checkpoint", "last"]) == 0
    for path in ("runs/whole", "average.safetensors"):
        model, _ = lightning_genesis.load(path, *(["last"] if path == "runs/whole" else []))
        for name, value in model.named_parameters():
            assert torch.equal(value, whole["state_dict"][name])


@pytest.mark.parametrize(
    ("options", "line"), [({"decay": 1.0}, "decay=1.0"), ({"update_every_n_steps": 0}, "=0")]
)
def test_wrong_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigurationError, match=line):
        WeightAverage(**options)
