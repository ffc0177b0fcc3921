"""The same pictures in the run's folder and in TensorBoard."""

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_genesis.cli import main
from tests.test_cli import TINY


def test_tensorboard_shows_what_the_files_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    logger = ["--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "board"]
    args = ["fit", "--config", "tiny.yaml", "--run.name", "run", "--trainer.max_steps", "4", *logger]
    assert main(args) == 0
    board = EventAccumulator(str(next((tmp_path / "board").rglob("version_0"))), {"images": 0}).Reload()
    pictures = tmp_path / "runs/run/pictures"
    for name, file in (("initial_masks", "initial_masks.png"), ("samples", "samples-000004.png")):
        (event,) = board.Images(f"pictures/{name}")
        shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"), dtype=int)
        saved = np.asarray(Image.open(pictures / file).convert("RGB"), dtype=int)
        assert shown.shape == saved.shape
        assert np.abs(shown - saved).max() <= 1  # the two round differently
    assert (tmp_path / "runs/run/metrics.csv").is_file()  # CSV always
    assert "train/loss" in board.Tags()["scalars"]
