"""The same pictures in the run's folder and in TensorBoard."""

import io
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_modules import MultiDSprites
from lightning_genesis.callbacks.pictures import Pictures
from lightning_genesis.cli import main
from lightning_genesis.models import GenesisV2, SlotAttention
from tests.test_cli import TINY
from tests.wandb_file import read_run


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


def test_pictures_have_an_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first validation, and with the first after every 5 steps: here at 2, 6, 10."""
    monkeypatch.chdir(tmp_path)
    pictures = {"num_images": 2, "every": 5, "walk_frames": 0}
    trainer = {**TINY["trainer"], "val_check_interval": 2, "max_steps": 10}
    options = {**TINY, "pictures": pictures, "trainer": trainer}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    assert main(["fit", "--config", "tiny.yaml", "--run.name", "run"]) == 0
    drawn = sorted(path.stem for path in (tmp_path / "runs/run/pictures").glob("reconstructions-*"))
    assert drawn == [f"reconstructions-{step:06d}" for step in (2, 6, 10)]


def test_a_resumed_run_keeps_its_initial_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = {"num_images": 2, "every": 100, "walk_frames": 0}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "pictures": pictures}))
    args = ["fit", "--config", "tiny.yaml", "--run.name", "run", "--ckpt_path", "last"]
    folder = tmp_path / "runs/run/pictures"
    assert main([*args, "--trainer.max_steps", "4"]) == 0
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "initial_masks.png" in first
    assert main([*args, "--trainer.max_steps", "8"]) == 0
    assert (folder / "initial_masks.png").read_bytes() == first["initial_masks.png"]
    assert {path.name for path in folder.iterdir()} == set(first)  # none fell due in these steps


def test_no_initial_masks_without_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.fromarray(np.full((32, 32, 3), 30 * number, np.uint8)).save(tmp_path / f"images/{number}.png")
    values = {"folder": "images", "image_size": 32, "num_slots": 3, "batch_size": 4, "val_fraction": 0.0}
    data = {"class_path": "data_modules.ImageFolder", "init_args": values}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": data}))
    assert main(["fit", "--config", "tiny.yaml", "--run.name", "run", "--trainer.max_steps", "2"]) == 0
    assert not (tmp_path / "runs/run/pictures/initial_masks.png").exists()


def test_walk_and_imagination_of_sri_go_to_the_folder_and_to_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = {
        "class_path": "lightning_genesis.models.SRI",
        "init_args": {"encoder_options": {"feature_dim": 8, "latent_dim": 8}, "scene_dim": 8},
    }
    pictures = {"num_images": 2, "every": 4, "walk_frames": 5}
    options = {**TINY, "model": model, "pictures": pictures, "run": {"wandb": True, "name": "run"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    assert main(["fit", "--config", "tiny.yaml", "--trainer.max_steps", "4"]) == 0
    folder = tmp_path / "runs/run"
    drawn = {path.name for path in (folder / "pictures").iterdir()}
    assert {"imagination-000004.png", "reconstructions-000004.png", "random_walk.gif"} <= drawn
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    _, rows = read_run(file)
    shown = {key.split("/")[1] for row in rows for key in row if key.startswith("pictures/")}
    assert {"imagination", "samples", "random_walk"} <= shown
    (video,) = (file.parent / "files/media/videos/pictures").glob("random_walk_*.gif")
    assert video.read_bytes() == (folder / "pictures/random_walk.gif").read_bytes()


def test_walk_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    data = MultiDSprites(
        image_size=32, num_slots=3, train_size=8, val_size=4, test_size=4, batch_size=4, root=str(tmp_path)
    )
    for kind, walks in ((GenesisV2, True), (SlotAttention, False)):
        model = kind(num_slots=3, image_size=32, feature_dim=8)
        trainer = pl.Trainer(
            max_steps=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Pictures(num_images=2, walk_frames=2)],
            default_root_dir=tmp_path / kind.__name__,
        )
        trainer.fit(model, datamodule=data)
        assert model.training
        assert (tmp_path / kind.__name__ / "pictures/random_walk.gif").is_file() is walks
