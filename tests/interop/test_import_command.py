"""`lightning-genesis import`, and what becomes of its checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from data_modules import MultiDSprites
from lightning_genesis.cli import main
from lightning_genesis.interop.known_models import OFFICIAL
from lightning_genesis.interop.official import import_official, load_official
from lightning_genesis.models import Genesis, GenesisV2, MONet, SceneModel, SlotAttention
from lightning_genesis.runs.loading import load
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.interop.official_files import official_state, trained_optimizer, write_file
from tests.models import v2_fixture
from tests.quick import few
from tests.reference import genesis, genesis_v2, monet
from tests.reference.slot_attention import emorl_keys

DATA: dict[str, Any] = {
    "image_size": 32,
    "num_slots": 3,
    "train_size": 24,
    "val_size": 6,
    "test_size": 6,
    "batch_size": 4,
}
TINY = {
    "trainer": {"max_steps": 6, "val_check_interval": 4, "log_every_n_steps": 1, "accelerator": "cpu"},
    "checkpoint": {"last_every": 2},
    "pictures": {"num_images": 2, "every": 100},
    "run": {"wandb": False},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An official run of a small GENESIS-V2 after 4 steps, with tiny data to go on with."""
    state = official_state(
        "genesisv2",
        v2_fixture.fixture_model(3, 32, feature_dim=8, latent_dim=8),
        genesis_v2.official_keys(4),
    )
    optimizer, _ = trained_optimizer(state)
    run = tmp_path / "official"
    run.mkdir()
    write_file(run / "model.ckpt-FINAL", state, optimiser_state_dict=optimizer, iter_idx=3)
    flags = {"K_steps": 3, "img_size": -1, "pixel_std1": 0.5, "g_goal": 0.6}
    (run / "flags.json").write_text(json.dumps(flags))
    data = {"class_path": "data_modules.MultiDSprites", "init_args": {**DATA, "root": str(tmp_path)}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-genesis")]
    assert len(lines) == 1
    return lines[0]


def test_imported_checkpoint_is_scored_and_trained_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", "official/model.ckpt-FINAL", "--model", "genesisv2", "--output", "v2.ckpt"]) == 0
    told = capsys.readouterr().out
    assert "GenesisV2, 3 slots, 32 px, after 4 steps; flags from official/flags.json" in told
    assert "fit --config v2.yaml --data DATA.yaml --ckpt_path v2.ckpt" in told
    checkpoint = read_checkpoint("v2.ckpt")
    official = torch.load("official/model.ckpt-FINAL", weights_only=True)

    options = [
        "--config",
        "v2.yaml",
        "--config",
        "tiny.yaml",
        "--data",
        "data.yaml",
        "--ckpt_path",
        "v2.ckpt",
    ]
    quiet = ["--trainer.enable_progress_bar", "false"]
    assert main(["test", *options, *quiet]) == 0
    assert main(["predict", *options, *quiet]) == 0
    assert main(["fit", *options, *quiet, "--run.name", "on"]) == 0

    last = read_checkpoint("runs/on/checkpoints/last.ckpt")
    assert last["global_step"] == 6
    (before,), (after,) = checkpoint["optimizer_states"], last["optimizer_states"]
    assert {float(state["step"]) for state in before["state"].values()} == {
        3.0
    }  # three steps of the stand-in
    assert {float(state["step"]) for state in after["state"].values()} == {5.0}  # and two of ours
    assert after["param_groups"][0]["lr"] == official["optimiser_state_dict"]["param_groups"][0]["lr"]
    assert last["state_dict"]["objective.step"] == 6
    steps = [row.split(",") for row in Path("runs/on/metrics.csv").read_text().splitlines()]
    column = steps[0].index("step")
    assert {int(row[column]) for row in steps[1:]} == {4, 5}


def test_default_output_and_safetensors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "official/model.ckpt-FINAL"]) == 0
    first = read_checkpoint("official/model.ckpt-FINAL.imported.ckpt")
    assert main(["import", "official/model.ckpt-FINAL"]) == 2
    assert "is there already; give another --output" in error_line(capsys)
    assert main(["import", "official/model.ckpt-FINAL", "--output", "new/v2.safetensors"]) == 0
    assert "--init_from new/v2.safetensors" in capsys.readouterr().out
    weights = read_checkpoint("new/v2.safetensors")
    assert weights["hyper_parameters"] == first["hyper_parameters"]
    for key, value in weights["state_dict"].items():
        assert torch.equal(value, first["state_dict"][key]), key
    with pytest.raises(ValueError, match="does not say which data it belongs to"):
        load("new/v2.safetensors")


def test_options_on_the_command_line(folder: Path) -> None:
    command = ["import", "official/model.ckpt-FINAL", "--output", "a.ckpt", "--num_slots", "5"]
    command += ["--kernel", "laplacian", "--flexible_slots", "true", "--std=0.25", "--objective", "GECO"]
    assert main([*command, "--objective.goal", "0.5"]) == 0
    values = read_checkpoint("a.ckpt")["hyper_parameters"]
    assert (values["num_slots"], values["kernel"], values["std"]) == (5, "laplacian", 0.25)
    assert values["flexible_slots"] is True
    assert values["objective"]["init_args"]["goal"] == 0.5
    section = yaml.safe_load(Path("a.yaml").read_text())["model"]
    assert section["class_path"] == "lightning_genesis.models.GenesisV2"
    assert section["init_args"]["kernel"] == "laplacian"
    assert "num_slots" not in section["init_args"]  # it belongs to the data


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "monet"], "holds the parameters of genesisv2, expected those of monet"),
        (["--model", "monett"], "invalid choice: 'monett'"),
        (["--num_slots", "many"], "invalid int value: 'many'"),
        (["--output", "x.pt"], "should end in .ckpt or .safetensors"),
        (["--kernle", "gaussian"], "no option 'kernle' (did you mean kernel?)"),
        (["--kernel", "square"], "kernel"),
        (["--std", "wide"], "std: expected float, found 'wide'"),
        (["--flags", "none.json"], "none.json: not readable as JSON"),
        (["--image_size", "64"], "parameter network.backbone"),
    ],
)
def test_error_lines(folder: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "official/model.ckpt-FINAL", *args]) == 2
    assert message in error_line(capsys)
    assert not list(folder.glob("**/*.imported*"))


def test_missing_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["import", str(tmp_path / "model.ckpt-1")]) == 2
    assert error_line(capsys).endswith("no such checkpoint")
    assert main(["import"]) == 2
    assert "the following arguments are required: file" in error_line(capsys)


# ---------------------------------------------------------------- there and back


class Recorder(pl.Callback):
    """β that every step's loss has."""

    def __init__(self) -> None:
        self.beta = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.beta = float(pl_module.objective.beta)


def trainer(steps: int, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )


MODELS: dict[str, tuple[Callable[..., SceneModel], dict[str, Any], list[str]]] = {
    "genesisv2": (GenesisV2, {"feature_dim": 8, "latent_dim": 8}, genesis_v2.official_keys(4)),
    "genesis": (Genesis, {}, genesis.official_keys(buffers=True)),
    "monet": (MONet, {"optimizer": "RMSprop"}, monet.official_keys(4, buffers=True)),
    "slot-attention-emorl": (
        SlotAttention,
        {
            "slot_dim": 8,
            "decoder": "small",
            "decoder_dim": 8,
            "implementation": "emorl",
            "warmup_steps": 10,
            "feature_dim": 8,
        },
        emorl_keys("small"),
    ),
}


@pytest.mark.parametrize("name", few(MODELS, "genesisv2", "slot-attention-emorl"))
def test_a_run_of_ours_comes_back_unchanged(name: str, tmp_path: Path) -> None:
    """A checkpoint of ours, written as the authors would have, is the same after import and trains alike."""
    kind, options, keys = MODELS[name]
    torch.manual_seed(0)
    data = MultiDSprites(**DATA, root=str(tmp_path))
    recorder = Recorder()
    first = trainer(3, recorder)
    first.fit(kind(3, 32, **options), data)
    path = tmp_path / "ours.ckpt"
    first.save_checkpoint(path)
    ours = torch.load(path, weights_only=True)

    model: Any = first.lightning_module
    state = official_state(name, model, keys)
    official = {OFFICIAL[name].rename(key): key for key in keys if key != "std"}
    parameters = [parameter for parameter, _ in model.named_parameters()]
    order = [key for key in state if key in {official[parameter] for parameter in parameters}]
    (optimizer,) = ours["optimizer_states"]
    moments = {
        order.index(official[parameters[number]]): value for number, value in optimizer["state"].items()
    }
    group = {**optimizer["param_groups"][0], "params": list(range(len(order)))}
    theirs = {"state": dict(sorted(moments.items())), "param_groups": [group]}
    source: dict[str, Any]
    arguments: dict[str, Any] = {"num_slots": 3}
    if name == "slot-attention-emorl":  # another layout; neither its size nor its schedule are in it
        source = {"model": state, "model_opt": theirs, "step": 2}
        arguments |= {"image_size": 32, "warmup_steps": 10}
    else:
        source = {"model_state_dict": state, "optimiser_state_dict": theirs, "iter_idx": 2}
        source |= {"beta": recorder.beta, "err_ema": model.objective.average[0]}  # β of the last loss
    imported = import_official(source, name, **arguments)

    for key in ("hyper_parameters", "global_step", "model_class"):
        assert imported[key] == ours[key], key
    assert imported["lr_schedulers"] == ours["lr_schedulers"]
    if "objective.beta" in ours["state_dict"]:
        assert recorder.beta != float(ours["state_dict"]["objective.beta"])
    for key, value in ours["state_dict"].items():
        torch.testing.assert_close(imported["state_dict"][key], value, rtol=2e-7, atol=0.0)
    (found,) = imported["optimizer_states"]
    assert found["param_groups"] == optimizer["param_groups"]
    assert found["state"].keys() == optimizer["state"].keys()
    for number, value in optimizer["state"].items():
        for moment, expected in value.items():
            assert torch.equal(found["state"][number][moment], expected)

    # β may differ in its last bit; with that the same, so is everything that follows
    imported["state_dict"] |= {key: value for key, value in ours["state_dict"].items() if "beta" in key}
    torch.save(imported, tmp_path / "imported.ckpt")
    ours.pop("random_states")  # the authors' files have none
    torch.save(ours, path)
    trained = []
    for resumed in (path, tmp_path / "imported.ckpt"):
        torch.manual_seed(1)
        second = trainer(5)
        second.fit(
            load_official(source, name, **arguments),
            MultiDSprites(**DATA, root=str(tmp_path)),
            ckpt_path=resumed,
        )
        assert second.global_step == 5
        assert second.fit_loop.epoch_loop.batch_progress.total.ready == 5
        trained.append(second.lightning_module.state_dict())
    for key, value in trained[0].items():
        assert torch.equal(trained[1][key], value), key
