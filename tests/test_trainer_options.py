"""What the Trainer's options mean here: time limits, precision, ways to start ranks; missing data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import data_modules
from data_modules import DataError, SceneDataModule
from data_modules.raw_source import RawSceneDataModule
from lightning_genesis.callbacks.time_limit import TimeLimit
from lightning_genesis.cli import main
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.quick import few
from tests.test_cli import TINY, error_line, rows

Fit = Callable[..., int]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    monkeypatch.chdir(tmp_path)
    trainer = {**TINY["trainer"], "enable_progress_bar": False}
    config = {**TINY, "trainer": trainer, "pictures": {"num_images": 0}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))

    def run(*args: str) -> int:
        return main(["fit", "--config", "tiny.yaml", "--run.name", "run", *args])

    return run


def test_a_resumed_run_has_its_time_again(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step at least is trained within any time, and after it the run is saved."""
    last = tmp_path / "runs/run/checkpoints/last.ckpt"
    limited = ["--trainer.max_time", "00:00:00:01", "--trainer.max_steps", "1000000", "--ckpt_path", "last"]
    reached = [0]
    for _ in range(2):
        assert fit(*limited) == 0
        reached.append(read_checkpoint(last)["global_step"])
        assert reached[-1] > reached[-2]
        said = caplog.text + capsys.readouterr().err
        assert (
            f"max_time 00:00:00:01 is over, after step {reached[-1]}; the same command with --ckpt_path"
            in said
        )


@pytest.mark.parametrize("wrong", ["abc", "1:2", {"fortnights": 1}])
def test_a_time_that_is_none(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^trainer\.max_time: .*, expected DD:HH:MM:SS$"):
        TimeLimit(wrong)


def test_validation_at_a_share_of_an_epoch(fit: Fit, tmp_path: Path) -> None:
    """Six batches an epoch: after 3, 6 and 9 steps."""
    assert fit("--trainer.val_check_interval", "0.5", "--trainer.max_steps", "9") == 0
    found = [int(row["step"]) for row in rows(tmp_path / "runs/run/metrics.csv") if row["val/elbo"]]
    assert found == [2, 5, 8]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        *(
            (["--trainer.precision", name], f"trainer.precision: {name}, expected one of 32-true, 16-mixed,")
            for name in ("16-true", "bf16-true", "64-true", "transformer-engine")
        ),
        (["--trainer.strategy", "ddp_spawn"], "trainer.strategy: ddp_spawn starts ranks inside"),
        (["--trainer.strategy", "ddp_notebook"], "trainer.strategy: ddp_notebook starts ranks inside"),
        (
            ["--trainer.strategy", "DDPStrategy", "--trainer.strategy.start_method", "fork"],
            "trainer.strategy: DDPStrategy by fork starts ranks inside this process and cannot hand the",
        ),
    ],
)
def test_what_would_not_work_is_refused(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    assert fit(*options) == 2
    assert named in error_line(capsys)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


# ---------------------------------------------------------------- data that are not there

LARGE = [
    kind
    for kind in (getattr(data_modules, name) for name in data_modules.__all__)
    if isinstance(kind, type) and issubclass(kind, SceneDataModule) and issubclass(kind, RawSceneDataModule)
]


@pytest.mark.parametrize(
    ("options", "said"),
    few(
        [
            (
                ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/nope"],
                "error: trainer: Early stopping conditioned on metric `val/nope` which is not available.",
            ),
            (
                ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.monitor", "val/nope"],
                "error: trainer: `ModelCheckpoint(monitor='val/nope')` could not find the monitored key",
            ),
            (
                ["--checkpoint.monitor", "val/nope"],
                "error: checkpoint.monitor='val/nope': not logged by validation",
            ),
        ],
        ["--checkpoint.monitor", "val/nope"],
    ),
)
def test_a_value_to_watch_that_does_not_exist(
    options: list[str], said: str, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows at the first validation, and costs no more than the steps since the last save."""
    assert fit(*options) == 2
    line = error_line(capsys)
    assert said in line
    assert "val/ari" in line  # what there is
    assert read_checkpoint(tmp_path / "runs/run/checkpoints/last.ckpt")["global_step"] == 2


def test_there_are_such_data() -> None:
    assert len(LARGE) >= 6


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("kind", LARGE, ids=lambda kind: kind.__name__)
def test_nothing_is_downloaded_by_the_way(
    command: str,
    kind: type[SceneDataModule],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command stops with the one that prepares the data, and has written nothing."""
    is_odd = kind.__name__ == "Tetrominoes"  # 35 pixels, which not every model takes
    if is_odd or (command != "fit" and kind is not LARGE[0]):
        with pytest.raises(DataError, match="run `lightning-genesis prepare"):
            kind(root=str(tmp_path)).prepare_data()
        return
    monkeypatch.chdir(tmp_path)

    def no_download(*_: Any, **__: Any) -> None:
        pytest.fail("a download was started")

    monkeypatch.setattr("data_modules.raw.fetch.download", no_download)
    model = ["--model", "VAE", "--data", kind.__name__, "--data.root", "nowhere", "--run.wandb", "false"]
    assert main([command, *model, "--trainer.accelerator", "cpu"]) == 2
    line = error_line(capsys)
    assert f"run `lightning-genesis prepare {kind.name} --root nowhere" in line
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())
