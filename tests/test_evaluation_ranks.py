"""A whole test, FID, S-Acc and protocol included: every model, and one process against several."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_genesis.cli import main
from lightning_genesis.results import read_results
from tests.ranks.command import apart, experiment, rows, start
from tests.ranks.tiny import NAMES, tiny

ARGUMENTS = (
    "--protocol",
    "genesisv2",
    "--importance_samples",
    "2",
    "--trainer.enable_model_summary",
    "false",
)


def numbers(run_folder: Path) -> dict[str, Any]:
    return {path.name[:-14]: json.loads(path.read_text()) for path in (run_folder / "metrics").iterdir()}


def test_two_ranks_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images: one rank has one more than the other, and every batch is smaller."""
    config = experiment("GenesisV2", tiny("GenesisV2").options, test_size=7)
    config["trainer"]["callbacks"] = [
        {"class_path": "tests.stand_in.StandInFID", "init_args": {"batch_size": 3}}
    ]
    config["fid"] = {"num_images": 0}
    config["data"]["class_path"] = "tests.stand_in.SpriteTowers"
    config["structure"] = {"num_images": 5, "batch_size": 2}
    done = start(tmp_path, "test", "two", config, *ARGUMENTS, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.chdir(tmp_path)
    (kept,) = tmp_path.glob("data/*/inception")
    names = sorted(path.name for path in kept.iterdir())
    shutil.rmtree(kept)
    # in this process: another one takes seconds to start
    assert main(["test", "--config", "two.yaml", "--run.name", "one", *ARGUMENTS]) == 0
    assert sorted(path.name for path in kept.iterdir()) == names
    assert len(names) == 2
    folders = [tmp_path / "runs" / name for name in ("two", "one")]
    two, one = map(numbers, folders)
    assert two.keys() == one.keys() == {"test", "test-genesisv2"}
    expected = {"fid", "fid_round", "kid", "kid_round", "importance_bound", "s_acc", "num_blocks"}
    for name, result in one.items():
        assert expected <= result["metrics"].keys()
        assert two[name]["metrics"] == pytest.approx(result["metrics"], rel=1e-5, abs=1e-6)
        assert (two[name]["num_images"], two[name]["options"]) == (7, result["options"])
    logs = [rows(folder / "test.csv", ("test/", "genesisv2/")) for folder in folders]
    assert len(logs[0]) == len(logs[1]) == 1
    assert max(apart(logs[0][0], logs[1][0]).values()) < 1e-5


@pytest.mark.slow
def test_a_rank_without_an_image(tmp_path: Path) -> None:
    config = experiment("GenesisV2", tiny("GenesisV2").options, test_size=2)
    config["trainer"]["callbacks"] = [{"class_path": "tests.stand_in.StandInFID", "init_args": {}}]
    config["fid"] = {"num_images": 0}
    for name, ranks in (("three", 3), ("one", 1)):
        done = start(tmp_path, "test", name, config, *ARGUMENTS, "--data.root", name, ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
    three, one = (numbers(tmp_path / "runs" / name) for name in ("three", "one"))
    for name, result in one.items():
        assert three[name]["metrics"] == pytest.approx(result["metrics"], rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", NAMES)
def test_every_model(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained, three images."""
    monkeypatch.chdir(folder)
    config = experiment(name, tiny(name).options, test_size=3)
    config["trainer"]["callbacks"] = [{"class_path": "tests.stand_in.StandInFID"}]
    config["fid"] = {"num_images": 0}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    bound = ("--importance_samples", "2") if name != "SlotAttention" else ()
    assert main(["test", "--config", f"{name}.yaml", "--protocol", "emorl", *bound]) == 0
    results = read_results(folder / f"runs/{name}-seed0")
    assert {result.protocol for result in results} == {None, "emorl"}
    for result in results:
        assert all(value is not None for value in result.metrics.values())
        assert "mse" in result.metrics
        if name != "SlotAttention":
            assert {"elbo", "bits_per_dim", "importance_bound", "fid", "kid"} <= result.metrics.keys()
