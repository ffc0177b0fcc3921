"""W&B offline: never asks, never blocks, and the run can be read back."""

from pathlib import Path

import pytest
import yaml

from lightning_genesis.cli import main
from tests.test_cli import TINY
from tests.wandb_file import read_run


def test_offline_run_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))  # no account
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    args = ["fit", "--config", "tiny.yaml", "--run.name", "offline", "--run.wandb", "true"]
    assert main([*args, "--trainer.max_steps", "4"]) == 0
    folder = tmp_path / "runs/offline"
    identity, owner = (folder / "wandb-id.txt").read_text().split()
    assert owner == str(folder)
    (file,) = folder.glob(f"wandb/offline-run-*/run-{identity}.wandb")
    config, rows = read_run(file)

    assert config["model"]["class_path"] == "lightning_genesis.models.GenesisV2"
    assert config["data"]["init_args"]["train_size"] == 24
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    assert any("val/ari_fg" in row for row in rows)
    names = [name for row in rows for key, name in row.items() if key == "pictures/reconstructions/filenames"]
    assert names
    assert all((file.parent / "files" / picture).is_file() for picture in names[0])

    # a resumed run continues the same one
    assert main([*args, "--trainer.max_steps", "6", "--ckpt_path", "last"]) == 0
    assert (folder / "wandb-id.txt").read_text().split() == [identity, owner]
    files = list(folder.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2
    resumed = next(read_run(other)[1] for other in files if other != file)
    steps = [row["trainer/global_step"] for row in resumed if "train/loss" in row]
    assert steps == [5]
