"""A whole test, FID, S-Acc and protocol included: every model, and one process against several."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from lightning_genesis.callbacks.fid import FIDCallback
from lightning_genesis.cli import main
from lightning_genesis.evaluation.reference_features import write_features
from lightning_genesis.models.emorl import Refinement
from tests.quick import few
from tests.ranks.command import apart, experiment, rows, start
from tests.ranks.tiny import NAMES, tiny
from tests.stand_in import StandIn

ARGUMENTS = (
    "--protocol",
    "genesisv2",
    "--importance_samples",
    "2",
    "--trainer.enable_model_summary",
    "false",
)
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def numbers(run_folder: Path) -> dict[str, Any]:
    return {path.name[:-14]: json.loads(path.read_text()) for path in (run_folder / "metrics").iterdir()}


def metrics(run_folder: Path) -> dict[str, dict[str, float]]:
    return {name: result["metrics"] for name, result in numbers(run_folder).items()}


def assert_close(some: dict[str, dict[str, float]], others: dict[str, dict[str, float]]) -> None:
    assert some.keys() == others.keys()
    for name, values in some.items():
        assert others[name] == pytest.approx(values, **CLOSE), name


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file of a folder was written; a file that is replaced is another one."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_two_ranks_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images: one rank has one more than the other, and every batch is smaller.

    First with the features of the images to be made, then on one process with those that were kept, and with
    its own.
    """
    config = experiment("GenesisV2", tiny("GenesisV2").options, test_size=7)
    config["trainer"]["callbacks"] = [
        {"class_path": "tests.stand_in.StandInFID", "init_args": {"batch_size": 3, "val_and_test": True}}
    ]
    config["fid"] = {"num_images": 0}
    config["data"]["class_path"] = "tests.stand_in.SpriteTowers"
    config["structure"] = {"num_images": 5, "batch_size": 2}
    done = start(tmp_path, "test", "two", config, *ARGUMENTS, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    (kept,) = tmp_path.glob("data/*/inception")
    files = written(kept)
    assert len(files) == 2
    monkeypatch.chdir(tmp_path)
    # in this process: another one takes seconds to start
    assert main(["test", "--config", "two.yaml", "--run.name", "again", *ARGUMENTS]) == 0
    assert written(kept) == files
    shutil.rmtree(kept)
    assert main(["test", "--config", "two.yaml", "--run.name", "one", *ARGUMENTS]) == 0
    assert written(kept).keys() == files.keys()
    folders = [tmp_path / "runs" / name for name in ("two", "again", "one")]
    two, again, one = map(numbers, folders)
    assert two.keys() == again.keys() == one.keys() == {"test", "test-genesisv2"}
    expected = {"fid", "fid_round", "kid", "kid_round", "importance_bound", "s_acc", "num_blocks"}
    expected |= {"s_acc_true", "s_acc_reconstructed"}
    for name, result in one.items():
        assert expected <= result["metrics"].keys()
        for other in (two[name], again[name]):
            assert other["metrics"] == pytest.approx(result["metrics"], **CLOSE)
            assert (other["num_images"], other["options"]) == (7, result["options"])
    logs = [rows(folder / "test.csv", ("test/", "genesisv2/")) for folder in folders]
    assert [len(log) for log in logs] == [1, 1, 1]
    for log in logs[:2]:
        assert max(apart(log[0], logs[2][0]).values()) < 1e-5


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
        assert three[name]["metrics"] == pytest.approx(result["metrics"], **CLOSE)


# ---------------------------------------------------------------- every model

_EMORL = next(variant for variant in tiny("SRI").variants if variant.get("encoder") == "emorl")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, dict(tiny(name).options)) for name in NAMES},
    "SRI-EMORL": ("SRI", {**tiny("SRI").options, **_EMORL}),
}


class AwakeRefinement(pl.Callback):
    """Enlarges EfficientMORL's refinement: at its initial weights it all but ignores the gradient."""

    @torch.no_grad()
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for module in pl_module.modules():
            if isinstance(module, Refinement):
                for part in (module.encoding, module.mean, module.scale):
                    for parameter in part.parameters():
                        parameter.mul_(100)


class OtherGenerator(pl.Callback):
    """Puts torch's own generator into another state than the run's seed."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.manual_seed(99)


AWAKE, OTHER_GENERATOR = (f"{__name__}.{kind.__name__}" for kind in (AwakeRefinement, OtherGenerator))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def section(case: str, run: str, batch_size: int, *callbacks: str) -> dict[str, Any]:
    """An untrained model, five images; each run makes the features of the images itself."""
    config = experiment(*CASES[case], test_size=5, batch_size=batch_size)
    fid = {"batch_size": batch_size, "cache": f"features/{run}"}
    config["trainer"]["callbacks"] = [
        {"class_path": "tests.stand_in.StandInFID", "init_args": fid},
        *({"class_path": path} for path in (AWAKE, *callbacks)),
    ]
    config["fid"] = {"num_images": 0}
    return config


def arguments(case: str) -> tuple[str, ...]:
    bound = ("--importance_samples", "2") if case != "SlotAttention" else ()
    return ("--protocol", "emorl", "--trainer.enable_model_summary", "false", *bound)


def whole(folder: Path, case: str, run: str, batch_size: int, *callbacks: str) -> dict[str, dict[str, float]]:
    """What a test in this process, in `folder`, says of a model."""
    (folder / f"{run}.yaml").write_text(yaml.safe_dump(section(case, run, batch_size, *callbacks)))
    assert main(["test", "--config", f"{run}.yaml", "--run.name", run, *arguments(case)]) == 0
    return metrics(folder / "runs" / run)


@pytest.mark.parametrize("case", few(CASES, "GenesisV2", "SRI", "EfficientMORL", "SlotAttention"))
def test_every_model_twice_and_in_smaller_batches(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the same twice, and but for float error the same whatever the batches."""
    monkeypatch.chdir(folder)
    once = whole(folder, case, f"{case}-once", 5)
    assert once.keys() == {"test", "test-emorl"}
    for values in once.values():
        assert all(value is not None for value in values.values())
        assert "mse" in values
        if case != "SlotAttention":
            assert {"elbo", "bits_per_dim", "importance_bound", "fid", "kid"} <= values.keys()
    assert whole(folder, case, f"{case}-twice", 5, OTHER_GENERATOR) == once
    assert_close(once, whole(folder, case, f"{case}-batches", 2))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_model_on_two_ranks(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    once = whole(folder, case, f"{case}-one", 5)
    done = start(folder, "test", f"{case}-two", section(case, f"{case}-two", 2), *arguments(case), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close(once, metrics(folder / "runs" / f"{case}-two"))


# ---------------------------------------------------------------- another reference

REFERENCE = {
    "format": 1,
    "dataset": "multi_dsprites",
    "split": "test",
    "num_images": 5,
    "image_size": 32,
    "weights_sha256": "stand-in",
    "rounding": "truncate",
}
"""What kept features were made from, besides the digest of the split."""
OTHERS = {
    "format": 2,
    "dataset": "objects_room",
    "split": "val",
    "split_sha256": "0" * 64,
    "num_images": 6,
    "image_size": 64,
    "weights_sha256": "another",
    "rounding": "round",
}


def read(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Kept features and what they say they were made from, unchecked."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("features"), json.loads(file.metadata()["manifest"])


class Kept(NamedTuple):
    """Features that the command has kept."""

    path: Path
    features: Tensor
    manifest: dict[str, Any]


@pytest.fixture(scope="module")
def kept(folder: Path) -> Kept:
    config = experiment("VAE", tiny("VAE").options, test_size=5)
    config["trainer"]["callbacks"] = None
    (folder / "kept.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        assert score_with_kept(folder, patch) == 0
    (path,) = (folder / "kept").glob("*-truncate.safetensors")
    return Kept(path, *read(path))


def score_with_kept(folder: Path, patch: pytest.MonkeyPatch) -> int:
    patch.chdir(folder)
    patch.setattr(FIDCallback, "make_extractor", lambda self, trainer: StandIn())
    return main(["test", "--config", "kept.yaml", "--fid.cache", "kept"])


def refusal(folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command ends."""
    capsys.readouterr()
    assert score_with_kept(folder, patch) == 2
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("lightning-genesis")]
    assert said.rstrip().endswith(line)
    assert "Traceback" not in said
    assert line.endswith("remove it, or give another folder with --fid.cache")
    return line


def test_what_features_were_made_from(kept: Kept) -> None:
    assert kept.features.shape == (5, StandIn.num_features)
    digest = kept.manifest["split_sha256"]
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert kept.manifest == {**REFERENCE, "split_sha256": digest}
    assert OTHERS.keys() == kept.manifest.keys()


@pytest.mark.parametrize("key", few(OTHERS, "format", "weights_sha256"))
def test_another_reference(
    key: str, kept: Kept, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with all of its checksums right, made from something else or without saying so."""
    rest = {name: value for name, value in kept.manifest.items() if name != key}
    for manifest in ({**rest, key: OTHERS[key]}, rest):
        write_features(kept.path, kept.features, manifest)
        expected = f"{key} {manifest.get(key)!r}, expected {kept.manifest[key]!r}; "
        assert f"{kept.path.name}: holds reference features of {expected}" in refusal(
            folder, monkeypatch, capsys
        )
    write_features(kept.path, kept.features, kept.manifest)
    assert score_with_kept(folder, monkeypatch) == 0


@pytest.mark.parametrize("count", [0, 4, 6])
def test_another_number_of_features_than_they_say(
    count: int, kept: Kept, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_features(kept.path, kept.features.repeat(2, 1)[:count], kept.manifest)
    assert f"damaged: its features [{count}, {StandIn.num_features}]" in refusal(folder, monkeypatch, capsys)


def test_features_of_another_dataset_in_the_same_place(
    kept: Kept, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing tampered with: the command of another dataset, given the same folder."""
    write_features(kept.path, kept.features, kept.manifest)
    config = yaml.safe_load((folder / "kept.yaml").read_text())
    config["data"]["init_args"]["variant"] = "unique"
    (folder / "kept.yaml").rename(folder / "first.yaml")
    (folder / "kept.yaml").write_text(yaml.safe_dump(config))
    try:
        line = refusal(folder, monkeypatch, capsys)
    finally:
        (folder / "first.yaml").rename(folder / "kept.yaml")
    assert f"holds reference features of split_sha256 '{kept.manifest['split_sha256']}', expected" in line
    features, manifest = read(kept.path)
    assert manifest == kept.manifest
    assert torch.equal(features, kept.features)


@pytest.mark.slow
def test_two_ranks_refuse_another_reference(tmp_path: Path) -> None:
    """Rank 0 alone reads it; the other does not wait for ever."""
    config = experiment("VAE", tiny("VAE").options, test_size=5)
    config["trainer"]["callbacks"] = [{"class_path": "tests.stand_in.StandInFID", "init_args": {}}]
    config["fid"] = {"num_images": 0}
    assert start(tmp_path, "test", "two", config, ranks=2).returncode == 0
    for path in tmp_path.glob("data/*/inception/*"):
        features, manifest = read(path)
        write_features(path, features, {**manifest, "dataset": "objects_room"})
    done = start(tmp_path, "test", "again", config, ranks=2)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "holds reference features of dataset 'objects_room', expected 'multi_dsprites'" in done.stderr
    assert "Traceback" not in done.stderr
