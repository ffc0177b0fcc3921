"""The command, run in this process on tiny data."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml

from lightning_genesis.cli import COMMANDS, main
from lightning_genesis.commands.fit import files_first
from lightning_genesis.runs.loading import load
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.quick import few

TINY = {
    "model": {
        "class_path": "lightning_genesis.models.GenesisV2",
        "init_args": {"feature_dim": 8, "latent_dim": 8},
    },
    "data": {
        "class_path": "data_modules.MultiDSprites",
        "init_args": {
            "image_size": 32,
            "train_size": 24,
            "val_size": 6,
            "test_size": 6,
            "batch_size": 4,
        },
    },
    "trainer": {"max_steps": 8, "val_check_interval": 4, "log_every_n_steps": 2, "accelerator": "cpu"},
    "checkpoint": {"last_every": 2, "keep_every": 4},
    "pictures": {"num_images": 2, "every": 4, "walk_frames": 2},
    "run": {"wandb": False},
}
Command = Callable[..., int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `lightning-genesis` in the folder, with the tiny experiment for what trains."""
    monkeypatch.chdir(folder)

    def run(name: str, *args: str, config: str = "tiny.yaml") -> int:
        return main([name, "--config", config, "--trainer.enable_progress_bar", "false", *args])

    return run


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """An uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "tiny.yaml", "--run.name", "whole"]) == 0
    return folder / "runs" / "whole"


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that an error leaves."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-genesis")]
    assert len(lines) == 1
    return lines[0]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def assert_equal_states(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


# ---------------------------------------------------------------- front


@pytest.mark.parametrize("args", [["--help"], ["--version"], []])
def test_front_does_not_import_torch(args: Sequence[str]) -> None:
    code = (
        f"import sys; from lightning_genesis.cli import main; main({list(args)!r}); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Lightning Genesis" in done.stdout or "lightning-genesis" in done.stdout


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: Sequence[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_genesis.commands.zoo.main", interrupt)
    assert main(["zoo"]) == 130
    assert capsys.readouterr().err == "lightning-genesis: zoo: stopped by Ctrl-C\n"


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fti"]) == 2
    line = error_line(capsys)
    assert "did you mean fit?" in line
    assert all(name in line for name in COMMANDS)


# ---------------------------------------------------------------- a run and its folder


def test_run_folder(trained: Path) -> None:
    checkpoints = {path.name for path in (trained / "checkpoints").iterdir()}
    assert checkpoints == {"last.ckpt", "previous.ckpt", "best.ckpt", "step-4.ckpt", "step-8.ckpt"}
    pictures = {path.name for path in (trained / "pictures").iterdir()}
    assert {"initial_masks.png", "reconstructions-000004.png", "samples-000008.png"} <= pictures
    logged = rows(trained / "metrics.csv")
    steps = [int(row["step"]) for row in logged if row["train/loss"]]
    assert steps == [1, 3, 5, 7]
    values = {name for row in logged for name, value in row.items() if value}
    assert {"geco/genesis_v2/beta", "val/ari_fg", "val/ari_fg_attention", "val/elbo"} <= values
    assert {"time/images_per_second", "time/data_fraction", "train/kl_latent"} <= values
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["init_args"]["latent_dim"] == 8
    assert "num_slots" not in config["model"]["init_args"]  # it belongs to the data


@pytest.mark.slow  # the next test makes the run again, and `tests/test_resume.py` one of another seed
def test_same_seed_same_run(trained: Path, command: Command, folder: Path) -> None:
    assert command("fit", "--run.name", "again") == 0
    again = folder / "runs" / "again"
    assert_equal_states(weights(trained / "checkpoints/last.ckpt"), weights(again / "checkpoints/last.ckpt"))
    assert command("fit", "--run.name", "other", "--seed_everything", "1") == 0
    other = weights(folder / "runs/other/checkpoints/last.ckpt")
    assert not torch.equal(
        other["network.decoder.layers.0.weight"],
        weights(trained / "checkpoints/last.ckpt")["network.decoder.layers.0.weight"],
    )


def test_saved_config_makes_the_run_again(trained: Path, command: Command, folder: Path) -> None:
    config = str(trained / "config.yaml")
    assert command("fit", "--run.name", "from-config", config=config) == 0
    again = folder / "runs/from-config/checkpoints/last.ckpt"
    assert_equal_states(weights(trained / "checkpoints/last.ckpt"), weights(again))


@pytest.mark.parametrize("stop", few([3, 6], 6))
def test_resume_continues_bit_for_bit(trained: Path, command: Command, folder: Path, stop: int) -> None:
    name = f"stopped-{stop}"
    assert command("fit", "--run.name", name, "--trainer.max_steps", str(stop)) == 0
    assert command("fit", "--run.name", name, "--ckpt_path", "last") == 0
    whole, resumed = (
        read_checkpoint(run / "checkpoints/last.ckpt") for run in (trained, folder / "runs" / name)
    )
    assert_equal_states(whole["state_dict"], resumed["state_dict"])
    assert whole["global_step"] == resumed["global_step"] == 8
    first, second = (optimizer["optimizer_states"][0]["state"] for optimizer in (whole, resumed))
    for key in first:
        assert all(torch.equal(first[key][part], second[key][part]) for part in first[key])
    names = ("step", "train/loss", "geco/genesis_v2/beta", "val/elbo")
    logs = [
        [[row.get(n) for n in names] for row in rows(run / "metrics.csv")]
        for run in (trained, folder / "runs" / name)
    ]
    assert [row for row in logs[0] if any(row[1:])] == [row for row in logs[1] if any(row[1:])]


def test_resume_finds_nothing_and_starts(command: Command, folder: Path) -> None:
    assert command("fit", "--run.name", "fresh", "--ckpt_path", "last", "--trainer.max_steps", "2") == 0
    assert (folder / "runs/fresh/checkpoints/last.ckpt").is_file()


@pytest.mark.slow  # `tests/test_evaluation_ranks.py` does so for each kind of model
def test_test_twice_is_identical_and_batch_size_does_not_matter(
    trained: Path, command: Command, folder: Path
) -> None:
    config = str(trained / "config.yaml")
    for _ in range(2):
        assert command("test", "--ckpt_path", "best", config=config) == 0
    assert command("test", "--ckpt_path", "best", "--data.batch_size", "3", config=config) == 0
    first, second, third = rows(trained / "test.csv")[-3:]
    assert first == second
    for name, value in first.items():
        if name.startswith("test/"):
            assert float(third[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6)


def test_options_count_wherever_they_stand(
    trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's config.yaml has `ckpt_path: null`, which must not win over an option before it."""
    monkeypatch.chdir(folder)
    words = ["--protocol", "genesisv2"]
    for config in (["--config", f"{trained}/config.yaml"], [f"--config={trained}/config.yaml"]):
        where = ["--run.root", "elsewhere", "--run.name", f"order-{len(config)}"]
        checkpoint = ["--ckpt_path", str(trained / "checkpoints/last.ckpt")]
        assert main(["test", *words, *checkpoint, *where, *config]) == 0
        found = list((folder / f"elsewhere/order-{len(config)}/metrics").glob("test-genesisv2-*.json"))
        assert len(found) == 1
        assert json.loads(found[0].read_text())["checkpoint"]["step"] == 8
    (folder / "x").write_text(""), (folder / "y").write_text("")
    assert files_first(["fit", "--a", "1", "-c", "x", "--config=y", "--b"]) == (
        ["fit", "-c", "x", "--config", "y", "--a", "1", "--b"]
    )


def test_init_from_takes_weights_alone(trained: Path, command: Command, folder: Path) -> None:
    start = str(trained / "checkpoints/last.ckpt")
    args = ("--init_from", start, "--trainer.max_steps", "1", "--model.learning_rate", "1e-30")
    assert command("fit", "--run.name", "warm", *args) == 0
    warm = read_checkpoint(folder / "runs/warm/checkpoints/last.ckpt")
    assert warm["global_step"] == 1
    saved = weights(trained / "checkpoints/last.ckpt")
    for key, value in warm["state_dict"].items():
        if key.startswith("objective."):
            assert value.item() != saved[key].item() or key.endswith("goal")
        else:
            torch.testing.assert_close(value, saved[key], rtol=0, atol=1e-25)


def test_predict_writes_masks_and_components(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("predict", "--ckpt_path", "best", config=str(trained / "config.yaml")) == 0
    assert f"6 pictures in {trained.relative_to(trained.parents[1])}/predictions" in capsys.readouterr().out
    written = sorted(path for path in (trained / "predictions").iterdir() if path.is_dir())
    assert len(written) == 6
    names = {path.name for path in written[0].iterdir()}
    assert {"reconstruction.png", "segmentation.png", "segmentation_attention.png", "mask_5.png"} <= names
    assert "mask_0.png" not in names


def test_load_and_export(trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert main(["export", str(trained), "weights.safetensors"]) == 0
    assert str(folder).encode() not in (folder / "weights.safetensors").read_bytes()
    for source in (trained, folder / "weights.safetensors"):
        model, data = load(source)
        assert type(model).__name__ == "GenesisV2"
        assert data.num_slots == model.num_slots == 5
        best = weights(trained / "checkpoints/best.ckpt")
        assert torch.equal(
            model.state_dict()["network.posterior_head.1.weight"], best["network.posterior_head.1.weight"]
        )


def test_weight_files_are_scored_like_checkpoints(trained: Path, command: Command, folder: Path) -> None:
    config = str(trained / "config.yaml")
    assert main(["export", str(trained), str(folder / "shared.safetensors"), "--checkpoint", "last"]) == 0
    assert command("validate", "--ckpt_path", "last", config=config) == 0
    assert command("validate", "--ckpt_path", str(folder / "shared.safetensors"), config=config) == 0
    with pytest.warns(UserWarning, match="the weights are untrained"):
        assert command("validate", config=config) == 0
    first, second, untrained = rows(trained / "validate.csv")[-3:]
    for name in ("val/elbo", "val/ari_fg", "val/mse"):
        assert first[name] == second[name] != untrained[name]


def test_fast_dev_run_leaves_nothing(command: Command, folder: Path) -> None:
    assert command("fit", "--run.name", "dry", "--trainer.fast_dev_run", "true") == 0
    assert not (folder / "runs/dry").exists()


# ---------------------------------------------------------------- one clear line


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--model.latentdim", "3"], ["latentdim", "did you mean latent_dim?"]),
        (["--model", "GenesisV3"], ["GenesisV3", "did you mean GenesisV2?"]),
        (["--data", "MultiSprites"], ["MultiSprites", "MultiDSprites", "ImageFolder"]),
        (["--model.objective", "GECO", "--model.objective.gaol", "1"], ["gaol", "did you mean goal?"]),
        (["--trainer.max_stepz", "3"], ["trainer.max_stepz", "did you mean trainer.max_steps?"]),
        (["--data.batch_size", "x"], ["batch_size", "int", "'x'"]),
        (["--model.num_slots", "3"], ["num_slots=3", "--data.num_slots"]),
        (["--model.init_args.image_size", "64"], ["image_size=64", "--data.image_size"]),
        (["--data.image_size", "40"], ["image_size=40", "decoder_stages=4"]),
        (["--data.image_size", "16"], ["image_size=16", "32, 48, 64"]),
        (["--data.num_slots", "0"], ["num_slots"]),
        (["--model.feature_dim", "12"], ["feature_dim=12", "multiple of 8"]),
        (["--model.optimizer", "Adamm"], ["Adamm", "Adam, AdamW, SGD, RMSprop"]),
        (["--init_from", "nowhere.ckpt"], ["nowhere.ckpt", "no such checkpoint"]),
        (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "no such checkpoint"]),
    ],
)
def test_bad_options(
    args: list[str], parts: list[str], command: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("fit", "--run.name", "bad", *args) == 2
    line = error_line(capsys)
    for part in parts:
        assert part in line
    assert not (folder / "runs/bad").exists()


def test_unknown_key_in_a_file(command: Command, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "typo.yaml").write_text(yaml.safe_dump({**TINY, "modle": 3}))
    assert command("fit", config="typo.yaml") == 2
    assert "did you mean model?" in error_line(capsys)


def test_trained_run_is_not_overwritten(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "checkpoints/last.ckpt").read_bytes()
    assert command("fit", "--run.name", "whole") == 2
    assert "--ckpt_path last" in error_line(capsys)
    assert (trained / "checkpoints/last.ckpt").read_bytes() == before


@pytest.mark.parametrize("name", ["fit", "test"])
def test_checkpoint_overrules_nothing(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["model"]["init_args"]["std"] = 0.3
    (trained.parent / "changed.yaml").write_text(yaml.safe_dump(config))
    assert command(name, "--ckpt_path", "last", config=str(trained.parent / "changed.yaml")) == 2
    line = error_line(capsys)
    assert "std was 0.7 in training and is 0.3 here" in line
    if name == "test":  # said on the command line it is meant
        config_path = str(trained / "config.yaml")
        assert command(name, "--ckpt_path", "last", "--model.std", "0.3", config=config_path) == 0


def test_checkpoint_of_other_options(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    start = str(trained / "checkpoints/last.ckpt")
    assert command("fit", "--run.name", "bad", "--init_from", start, "--model.latent_dim", "16") == 2
    line = error_line(capsys)
    assert "last.ckpt" in line
    assert "shape" in line


def test_checkpoint_of_another_model(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = read_checkpoint(trained / "checkpoints/last.ckpt")
    torch.save({**checkpoint, "model_class": "MONet"}, trained.parent / "monet.ckpt")
    assert command("fit", "--run.name", "bad", "--init_from", str(trained.parent / "monet.ckpt")) == 2
    assert "holds a MONet, but the model is a GenesisV2" in error_line(capsys)


@pytest.mark.parametrize("damage", ["truncated", "text", "pickle", "foreign"])
def test_damaged_checkpoint(
    trained: Path, command: Command, capsys: pytest.CaptureFixture[str], damage: str, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.ckpt"
    good = (trained / "checkpoints/last.ckpt").read_bytes()
    if damage == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "pickle":
        torch.save(
            {"state_dict": {}, "model_class": Path("x")}, path
        )  # an object: would have to be unpickled
    else:
        torch.save({"weights": torch.zeros(3)}, path)
    assert command("fit", "--run.name", "bad", "--ckpt_path", str(path)) == 2
    assert "damaged.ckpt" in error_line(capsys)


def test_prepare(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    sizes = ["--train_size", "5", "--val_size", "3", "--test_size", "2", "--image_size", "32"]
    assert main(["prepare", "multi_dsprites", "--root", "prepared", *sizes]) == 0
    assert list((folder / "prepared").rglob("manifest.json"))
    capsys.readouterr()
    assert main(["prepare", "multi_dsprite"]) == 2
    assert "did you mean multi_dsprites?" in error_line(capsys)
    assert main(["prepare", "multi_dsprites", "--train_sizes", "5"]) == 2
    assert "train_sizes" in error_line(capsys)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xb4\x00\xff", "not readable as YAML"),
        (b"model: [1, 2", "not readable as YAML"),
        (b"a: &a [*a]", "refers to itself"),
        (b"", "holds nothing, expected a mapping"),
        (b"[1, 2, 3]", "holds a list, expected a mapping"),
    ],
)
@pytest.mark.parametrize("form", [["--config", "rubbish.yaml"], ["--config=rubbish.yaml"]])
def test_rubbish_config_is_named(
    content: bytes,
    said: str,
    form: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rubbish.yaml").write_bytes(content)
    assert main(["fit", *form]) == 2
    line = error_line(capsys)
    assert "rubbish.yaml: " in line
    assert said in line


def test_file_in_place_of_the_runs_folder(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("fit", "--run.root", "tiny.yaml", "--run.name", "nowhere") == 2
    assert "tiny.yaml/nowhere: Not a directory" in error_line(capsys)


@pytest.mark.slow  # `tests/test_run_folder.py` renames one run, and copies another
def test_a_moved_run_goes_on_from_anywhere(
    folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in a run's folder depends on where it was made."""
    args = ["--run.name", "moved", "--trainer.enable_progress_bar", "false"]
    monkeypatch.chdir(folder)
    assert main(["fit", "--config", "tiny.yaml", *args, "--trainer.max_steps", "5"]) == 0
    shutil.move(folder / "runs/moved", tmp_path / "elsewhere/moved")
    monkeypatch.chdir(tmp_path)
    places = ["--run.root", "elsewhere", "--data.root", str(tmp_path / "other-data")]
    assert main(["fit", "--config", str(folder / "tiny.yaml"), *args, *places, "--ckpt_path", "last"]) == 0
    moved = weights(tmp_path / "elsewhere/moved/checkpoints/last.ckpt")
    assert_equal_states(weights(trained / "checkpoints/last.ckpt"), moved)


@pytest.mark.parametrize(("section", "kind"), [("model", "SRI"), ("data", "Clevr6")])
def test_help_shows_every_option_with_its_text(
    capsys: pytest.CaptureFixture[str], section: str, kind: str
) -> None:
    """Also those that a constructor only hands on."""
    with pytest.raises(SystemExit) as left:
        main(["fit", f"--{section}.help", kind])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    expected = {
        "model": ("of the optimiser. (type: float", "its own options by name: betas", "balances the terms"),
        "data": (
            "folder for prepared data. (type: str",
            "images per training step over all ranks.",
            "subset",
        ),
    }
    for words in expected[section]:
        assert words in text
    assert "see `S" not in text
    assert "--model.num_slots" not in text or "comes from the data" in text
