"""Two ranks, started as the command starts them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_genesis.checkpoint import read_checkpoint
from tests.test_cli import TINY


def fit(folder: Path, name: str, *args: str) -> dict[str, torch.Tensor]:
    """Trains on two ranks and returns the last state."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = [
        sys.executable,
        "-m",
        "lightning_genesis.cli",
        "fit",
        "--config",
        "tiny.yaml",
        "--run.name",
        name,
    ]
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.enable_progress_bar", "false"]
    done = subprocess.run([*command, *ranks, *args], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_checkpoint(folder / "runs" / name / "checkpoints/last.ckpt")


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit(tmp_path: Path) -> None:
    whole = fit(tmp_path, "whole")
    fit(tmp_path, "stopped", "--trainer.max_steps", "5")
    resumed = fit(tmp_path, "stopped", "--ckpt_path", "last")
    assert resumed["global_step"] == whole["global_step"] == 8
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    first, second = whole["random_states"]
    assert not torch.equal(first["torch"], second["torch"])  # each rank draws noise of its own
