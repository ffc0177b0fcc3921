"""W&B offline: never asks, never blocks, and the run can be read back."""

import base64
import hashlib
import json
from pathlib import Path

import pytest
import wandb
import yaml
from wandb.sdk.lib.wbauth import read_netrc_auth

from lightning_genesis.cli import main
from lightning_genesis.runs.loggers import SUMMARIES, make_wandb_logger
from lightning_genesis.runs.wandb_account import has_key, server
from lightning_genesis.runs.wandb_file import read_records
from tests.test_cli import TINY
from tests.wandb_file import read_run, read_summary


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
    args += ["--run.group", "mine", "--run.tags", "[first, second]", "--run.artifacts", "true"]
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

    # every picture and film says the step and what is seen
    captions = {key: value for row in rows for key, value in row.items() if key.endswith("/captions")}
    assert captions == {
        "pictures/initial_masks/captions": ["step 0: image, segmentation and every slot's attention mask"],
        "pictures/reconstructions/captions": ["step 4: image, reconstruction, segmentation, slots"],
        "pictures/samples/captions": ["step 4: sample from the prior, its masks, slots"],
        "pictures/random_walk/captions": ["step 4: a walk through the prior"],
    }

    # the best and the last checkpoint, as they are in the folder
    artifacts = [record.artifact for record in records if record.artifact.name]
    kept = {alias: found for found in artifacts for alias in found.aliases if alias != "latest"}
    assert {alias: found.name for alias, found in kept.items()} == dict.fromkeys(
        ("best", "last"), f"checkpoints-{identity}"
    )
    for alias, found in kept.items():
        (entry,) = found.manifest.contents
        content = (folder / f"checkpoints/{alias}.ckpt").read_bytes()
        assert (entry.path, entry.size) == (f"{alias}.ckpt", len(content))
        assert entry.digest == base64.b64encode(hashlib.md5(content).digest()).decode()
        assert json.loads(found.metadata)["step"] == 4

    # a resumed run continues the same one
    assert main([*args, "--trainer.max_steps", "6", "--ckpt_path", "last"]) == 0
    assert (folder / "wandb-id.txt").read_text().split() == [identity, owner]
    files = list(folder.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2
    resumed = next(read_run(other)[1] for other in files if other != file)
    steps = [row["trainer/global_step"] for row in resumed if "train/loss" in row]
    assert steps == [5]
    said = capsys.readouterr().out
    assert f"offline; to upload: wandb sync runs/offline/wandb/offline-run-*-{identity}\n" in said

    # a test is logged to the same run, at the step of the checkpoint: numbers, and a table of them
    assert main(["test", "--config", str(folder / "config.yaml"), "--ckpt_path", "last"]) == 0
    (last,) = set(folder.glob(f"wandb/offline-run-*/run-{identity}.wandb")) - set(files)
    _, tested = read_run(last)
    assert {row["trainer/global_step"] for row in tested} == {6}
    (results,) = folder.glob("metrics/test-*.json")
    metrics = json.loads(results.read_text())["metrics"]
    summary = read_summary(last)
    assert summary["test/ari_fg"] == pytest.approx(metrics["ari_fg"])
    assert "32 px" in summary["test/differs"]
    (path,) = (row["tables/test/path"] for row in tested if "tables/test/path" in row)
    table = json.loads((last.parent / "files" / path).read_text())
    assert table["columns"] == ["metric", "here", "paper", "difference"]
    values = {label: value for label, value, *_ in table["data"]}
    assert len(values) == len(metrics)
    assert values["MSE"] == pytest.approx(metrics["mse"])
    said = capsys.readouterr().out
    assert f"W&B: offline; to upload: wandb sync runs/offline/wandb/offline-run-*-{identity}\n" in said


def test_an_artifact_that_cannot_be_kept_hurts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").write_text("in the way")
    logger = make_wandb_logger(tmp_path / "run", "name")
    (tmp_path / "last.ckpt").write_text("weights")
    with pytest.warns(UserWarning, match=r"W&B: .*last\.ckpt is not kept as an artifact"):
        logger.log_checkpoint(tmp_path / "last.ckpt", {})
    logger.log_metrics({"train/loss": 1.0}, step=3)
    logger.experiment.finish()
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    assert [row["train/loss"] for row in read_run(file)[1]] == [1.0]


@pytest.mark.parametrize("place", ["variable", "own", "old", "address", "none"])
def test_an_account_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """As W&B's own library finds it: it keeps keys by host and port, and once kept them by another host."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    key = 10 * "abcd"
    host = str(wandb.Settings().base_url).removeprefix("https://")
    hosts = {"own": host, "old": "api.wandb.ai", "address": "localhost:8080", "none": "example.org"}
    if place == "variable":
        monkeypatch.setenv("WANDB_API_KEY", key)
    else:
        (tmp_path / "netrc").write_text(f"machine {hosts[place]} login user password {key}")
    if place == "address":
        monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:8080")
    assert has_key() is (place != "none")
    if place != "variable":
        assert (read_netrc_auth(host=server()) == key) is (place != "none")
