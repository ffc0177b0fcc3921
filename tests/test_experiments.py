"""Every experiment parses and takes two steps on little data."""

from pathlib import Path

import pytest
import torch

from lightning_genesis.cli import main

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_two_steps(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = [
        "--data.train_size",
        "4",
        "--data.val_size",
        "2",
        "--data.test_size",
        "2",
        "--data.batch_size",
        "2",
    ]
    args = ["fit", "--config", str(experiment), *sizes, "--data.root", str(tmp_path / "data")]
    assert main([*args, "--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu"]) == 0


def test_headers_say_what_to_expect() -> None:
    for experiment in EXPERIMENTS:
        header = [line for line in experiment.read_text().splitlines() if line.startswith("#")]
        text = "\n".join(header)
        assert "Source:" in text, experiment


def test_papers_settings_are_the_defaults() -> None:
    """Adam 1e-4, K 5, 64 px, batch 32, 500k steps, σ 0.7, goal 0.5655 (GENESIS-V2, Section 5)."""
    from lightning_genesis.experiment import ExperimentCLI

    class Parsed(ExperimentCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            """Builds everything and stops there."""

    experiment = next(path for path in EXPERIMENTS if path.stem == "genesisv2_multidsprites")
    built = Parsed(["fit", "--config", str(experiment), "--run.wandb", "false"])
    assert (built.model.num_slots, built.model.image_size, built.datamodule.batch_size) == (5, 64, 32)
    assert built.trainer.max_steps == 500_000
    optimizer = built.model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 1e-4
    assert built.model.std == 0.7
    assert built.model.objective.goal == 0.5655
