"""W&B offline: never asks, never blocks, and the run can be read back."""

from pathlib import Path

import pytest
import yaml

from lightning_genesis.cli import main
from lightning_genesis.runs.loggers import SUMMARIES
from lightning_genesis.runs.wandb_file import read_records
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
    (tmp_path / "tiny.yaml").write_text(f"# A tiny run.\n# Source: ours.\n{yaml.safe_dump(TINY)}")
    args = ["fit", "--config", "tiny.yaml", "--run.name", "offline", "--run.wandb", "true"]
    args += ["--run.group", "mine", "--run.tags", "[first, second]"]
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

    # what W&B shows it by: group, tags, notes, the axis, the best and the last
    records = list(read_records(file))
    (about,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (about.run_group, list(about.tags)) == ("mine", ["first", "second"])
    assert about.notes == "A tiny run.\nSource: ours."
    metrics = {record.metric.name: record.metric for record in records if record.metric.name}
    assert metrics["val/ari_fg"].step_metric == "trainer/global_step"
    assert (metrics["val/ari_fg"].summary.max, metrics["val/ari_fg"].summary.last) == (True, True)
    assert (metrics["val/mse"].summary.min, metrics["train/loss"].summary.last) == (True, True)
    logged = {name for row in rows for name in row}
    assert set(SUMMARIES) - logged <= {"val/elbo"}, "no summary of what is never logged"

    # a resumed run continues the same one
    assert main([*args, "--trainer.max_steps", "6", "--ckpt_path", "last"]) == 0
    assert (folder / "wandb-id.txt").read_text().split() == [identity, owner]
    files = list(folder.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2
    resumed = next(read_run(other)[1] for other in files if other != file)
    steps = [row["trainer/global_step"] for row in resumed if "train/loss" in row]
    assert steps == [5]
