"""The pages "Your own model" and "Your own data": every line of them, outside the project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lightning_genesis
from lightning_genesis.classes import subclasses
from lightning_genesis.cli import main
from lightning_genesis.errors import UserError
from lightning_genesis.models import SceneModel
from tests.pages import ROOT, commands, run_here, run_process, write_files

MODEL, DATA = ROOT / "docs" / "own-model.md", ROOT / "docs" / "own-data.md"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything the two pages write, and a folder of pictures."""
    folder = tmp_path_factory.mktemp("lab")
    assert {path.name for page in (MODEL, DATA) for path in write_files(page, folder)} == {
        *("slot_vae.py", "slot_vae.yaml", "use.py", "discs.py"),
    }
    (folder / "pictures").mkdir()
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    return folder


@pytest.fixture
def here(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(lab)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(lab)])
    return lab


def test_your_own_model(here: Path) -> None:
    lines = commands(MODEL)
    assert {words[0] for words in lines} == {
        *("fit", "validate", "test", "predict", "sample", "figures", "probe", "label", "report", "export"),
    }
    fit, *rest = lines
    run_process(fit, here)  # a process knows nothing of `mylab` but what the configuration says
    for words in rest:
        if words[0] == "report":
            assert main(words) in (0, 1)  # one seed of untrained length: remarks are due
        else:
            run_here(words)
    assert (here / "samples" / "samples.png").is_file()
    assert (here / "label.html").is_file()
    model, _ = lightning_genesis.load("runs/mine")
    assert type(model).__name__ == "SlotVAE"


@pytest.mark.slow  # in this process, `tests/test_checkpoint.py` refuses what it does not know
def test_weights_alone_import_nothing(here: Path) -> None:
    """In a process of its own: the class is neither ours nor imported there."""
    if not (here / "mine.safetensors").is_file():
        pytest.skip("needs the file of the test before")
    code = (
        "import sys, lightning_genesis\n"
        "from lightning_genesis.errors import UserError\n"
        "try:\n"
        "    lightning_genesis.load('mine.safetensors')\n"
        "except UserError as error:\n"
        "    assert 'mylab' not in sys.modules\n"
        "    assert 'give your own with --model CLASS' in str(error), error\n"
        "else:\n"
        "    sys.exit('loaded')\n"
        "model, _ = lightning_genesis.load('mine.safetensors', model='mylab.slot_vae.SlotVAE')\n"
        "assert type(model).__module__ == 'mylab.slot_vae'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_your_own_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(DATA):
        run_here(words)
    assert "mylab.discs.Discs is ready in data" in capsys.readouterr().out
    shutil.rmtree(here / "data")
    # what a data module of one's own advises is a command that exists
    from mylab.discs import Discs  # type: ignore[import-not-found]

    assert Discs(num_images=32).prepare_command() == (
        "lightning-genesis prepare mylab.discs.Discs --root data --num_images 32"
    )


@pytest.mark.slow
def test_every_command_in_a_process_of_its_own(here: Path) -> None:
    shutil.rmtree(here / "runs", ignore_errors=True)
    for name in ("samples", "more", "report", "discs", "data"):
        shutil.rmtree(here / name, ignore_errors=True)
    for name in ("label.html", "mine.safetensors"):
        (here / name).unlink(missing_ok=True)
    for words in [*commands(MODEL), *commands(DATA)]:
        if words[0] != "report":
            run_process(words, here)
    done = subprocess.run(
        [sys.executable, "use.py"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "SlotVAE torch.Size([2, 4, 3, 32, 32])"


CONTRACT = """
from lightning_genesis.models import SceneModel
from lightning_genesis.scene import Scene, Terms
import torch
class {name}(SceneModel):
{body}
"""
FORWARD = """
    def forward(self, images, noise=None):
        self.w = getattr(self, "w", None) or torch.nn.Parameter(torch.zeros(()))
        b, _, h, w = images.shape
        return Scene(torch.zeros(b, 2, 3, h, w), torch.zeros(b, 2, 1, h, w))
"""
INIT = """
    def __init__(self, num_slots, image_size, **common):
        super().__init__(num_slots=num_slots, image_size=image_size, **common)
        self.weight = torch.nn.Parameter(torch.zeros(()))
"""
FORGOTTEN = {
    "constructor": (
        "    branches = ('a',)\n    def __init__(self, width=3):\n        super().__init__()\n",
        "its constructor does not take num_slots, which comes from the data",
    ),
    "branches": (INIT, "branches is (), expected the names of the parts of its loss"),
    "forward": (f"    branches = ('a',)\n{INIT}", "has no forward(images, noise=None) -> Scene"),
    "scene": (
        f"    branches = ('a',)\n{INIT}\n    def forward(self, images, noise=None):\n        return images\n",
        ".forward gives a Tensor, expected a lightning_genesis.scene.Scene",
    ),
    "masks": (
        f"    branches = ('a',)\n{INIT}\n    def forward(self, images, noise=None):\n"
        "        b, _, h, w = images.shape\n"
        "        return Scene(torch.zeros(b, 2, 3, h, w), torch.zeros(b, 2, h, w))\n"
        "    def loss_terms(self, scene, images):\n        return {}\n",
        "Scene.log_masks is [4, 2, 32, 32], expected [4, 2, 1, 32, 32]",
    ),
    "terms": (
        f"    branches = ('a',)\n{INIT}\n    def forward(self, images, noise=None):\n"
        "        b, _, h, w = images.shape\n"
        "        return Scene(torch.zeros(b, 2, 3, h, w), torch.zeros(b, 2, 1, h, w))\n"
        "    def loss_terms(self, scene, images):\n"
        "        return {'a': Terms(self.weight * images.mean(), {})}\n",
        "nll of 'a' is [], expected [4], nats per image",
    ),
    "keys": (
        f"    branches = ('a',)\n{INIT}\n    def forward(self, images, noise=None):\n"
        "        b, _, h, w = images.shape\n"
        "        return Scene(torch.zeros(b, 2, 3, h, w), torch.zeros(b, 2, 1, h, w))\n"
        "    def loss_terms(self, scene, images):\n"
        "        return {'b': Terms(self.weight * images.mean(dim=(1, 2, 3)), {})}\n",
        "gives ['b'], expected a Terms for each of ['a'], in order",
    ),
    "hyperparameter": (
        "    branches = ('a',)\n"
        "    def __init__(self, num_slots, image_size, size: int = 3, **common):\n"
        "        size = torch.zeros(size)\n"
        "        super().__init__(num_slots=num_slots, image_size=image_size, **common)\n",
        "argument size is a Tensor; hyperparameters are numbers",
    ),
}


@pytest.mark.parametrize("name", FORGOTTEN)
def test_what_a_model_forgets_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    body, expected = FORGOTTEN[name]
    (tmp_path / f"forgets_{name}.py").write_text(CONTRACT.format(name=f"Forgets{name.title()}", body=body))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    data = [
        "--data",
        "MultiDSprites",
        "--data.image_size",
        "32",
        "--data.train_size",
        "8",
        "--data.val_size",
        "4",
    ]
    data += ["--data.test_size", "4", "--data.batch_size", "4", "--data.num_slots", "2"]
    options = ["--run.wandb", "false", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    kind = f"forgets_{name}.Forgets{name.title()}"
    assert main(["fit", "--model", kind, *data, *options, "--trainer.enable_progress_bar", "false"]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lightning-genesis")]
    assert expected in line


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--model", "mylab.absent.Model", "--model: mylab.absent.Model: no module 'mylab.absent'"),
        ("--model", "nolab.absent.Model", "--model: nolab.absent.Model: no module 'nolab'"),
        (
            "--model",
            "mylab.slot_vae.SlotVEA",
            "expected a SceneModel, but there is none; mylab.slot_vae has SlotVAE",
        ),
        ("--model", "mylab.slot_vae.Scene", "expected a SceneModel, but it is no SceneModel"),
        ("--model", "torch.nn.Linear", "expected a SceneModel, but it is no SceneModel"),
        ("--data", "mylab.discs.Dics", "expected a SceneDataModule, but there is none; mylab.discs has"),
        ("--model", "SlotVEA", "no class 'SlotVEA'"),
    ],
)
def test_a_class_that_cannot_be_found(
    here: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, expected: str
) -> None:
    assert main(["fit", "--config", "slot_vae.yaml", "--run.name", "none", option, value]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lightning-genesis")]
    assert expected in line
    assert not (here / "runs" / "none").exists()


def test_two_models_of_one_name(tmp_path: Path) -> None:
    from lightning_genesis.models.restore import model_class

    kinds = [
        type("Twice", (SceneModel,), {"forward": lambda self, images, noise=None: None}) for _ in range(2)
    ]
    kinds[0].__module__, kinds[1].__module__ = "mylab.a", "mylab.b"
    assert {*kinds} <= {*subclasses(SceneModel)}
    with pytest.raises(UserError, match=r"is the name of mylab\.a\.Twice and mylab\.b\.Twice: give --model"):
        model_class({"model_class": "Twice"}, tmp_path / "x.ckpt", SceneModel)
    assert model_class({"model_class": "Twice"}, tmp_path / "x.ckpt", kinds[1]) is kinds[1]
