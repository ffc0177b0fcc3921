"""`lightning-genesis probe`: probes that can only be right or guess, matching by brute force, the command."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from data_modules import MultiDSprites, ShapeStacks
from data_modules.synthesis import shapestacks as synthesis
from lightning_genesis.cli import main
from lightning_genesis.evaluation.probes import (
    Latents,
    Probe,
    collect,
    is_class,
    match_objects,
    metrics_of,
    probe_classes,
    probe_numbers,
    run_probes,
    train_probe,
)
from lightning_genesis.models import SRI, VAE, Genesis, GenesisV2, MONet, SceneModel, SlotAttention
from lightning_genesis.runs.results import read_results
from lightning_genesis.scene import IndexedNoise, Scene
from tests.data_modules.test_multi_dsprites import without_objects
from tests.weights_file import export

SETTINGS = Probe(hidden_dim=64, num_epochs=30, learning_rate=1e-2)


def examples(count: int, seed: int, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    """Features `[N, 12]` of noise, and labels `[N]` from 2."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, 2 + num_classes, (count,), generator=generator)
    return torch.randn(count, 12, generator=generator), labels


# ---------------------------------------------------------------- probes


def test_features_that_hold_the_label() -> None:
    (train, labels), (test, truth) = examples(800, 0), examples(400, 1)
    train[:, 3], test[:, 3] = labels / 2.0, truth / 2.0
    score = probe_classes(train, labels, test, truth, SETTINGS)
    assert score.kind == "accuracy"
    assert score.value > 0.97
    assert score.chance == pytest.approx((truth == labels.mode().values).float().mean().item())


def test_features_that_say_nothing() -> None:
    (train, labels), (test, truth) = examples(800, 0), examples(2000, 1)
    score = probe_classes(train, labels, test, truth, SETTINGS)
    assert score.value == pytest.approx(0.2, abs=0.04)


def test_numbers() -> None:
    train, test = examples(800, 0)[0], examples(400, 1)[0]
    values, truth = (torch.stack([100 + 5 * x[:, 0], -x[:, 1]], dim=1).double() for x in (train, test))
    score = probe_numbers(train, values, test, truth, SETTINGS)
    assert score.kind == "r2"
    assert score.value > 0.97
    assert score.chance == pytest.approx(0, abs=0.02)
    assert probe_numbers(train[:, 2:], values, test[:, 2:], truth, SETTINGS).value < 0.1


def test_a_class_that_training_does_not_know_is_wrong() -> None:
    (train, labels), (test, truth) = examples(400, 0), examples(100, 1)
    train[:, 3], test[:, 3] = labels / 2.0, truth / 2.0
    truth[:50] = 99
    assert probe_classes(train, labels, test, truth, SETTINGS).value <= 0.5


def test_a_seed_gives_one_network_and_leaves_others_generators_alone() -> None:
    train, labels = examples(200, 0)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = (
        train_probe(train, labels - 2, 5, Probe(num_epochs=2, hidden_dim=8, seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_the_papers_network() -> None:
    """GENESIS, Appendix B.5."""
    probe = Probe()
    assert (probe.hidden_dim, probe.num_epochs, probe.batch_size, probe.learning_rate) == (
        512,
        100,
        128,
        1e-4,
    )
    network = train_probe(torch.zeros(2, 656), torch.tensor([0, 1]), 16, Probe(num_epochs=1))
    assert [type(layer).__name__ for layer in network.children()] == ["Linear", "ELU", "Linear"]
    assert [list(p.shape) for p in network.parameters()] == [[512, 656], [512], [16, 512], [16]]


def test_training_by_a_plain_loop() -> None:
    """Adam's formulas, cross-entropy and the order of the examples, written out."""
    settings = Probe(hidden_dim=3, num_epochs=2, batch_size=4, learning_rate=0.01, seed=5)
    features, labels = examples(10, 0)
    found = train_probe(features, labels - 2, 5, settings)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = (torch.nn.Linear(12, 3), torch.nn.Linear(3, 5))
    weights = [p.detach().clone().requires_grad_() for layer in layers for p in layer.parameters()]
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in weights]
    order, step = torch.Generator().manual_seed(5), 0
    for _ in range(2):
        shuffled = torch.randperm(10, generator=order)
        for first in (0, 4, 8):
            some = shuffled[first : first + 4]
            hidden = features[some] @ weights[0].T + weights[1]
            hidden = torch.where(hidden > 0, hidden, hidden.exp() - 1)
            logits = hidden @ weights[2].T + weights[3]
            chosen = logits.gather(1, (labels[some] - 2)[:, None])[:, 0]
            gradients = torch.autograd.grad((logits.logsumexp(dim=1) - chosen).mean(), weights)
            step += 1
            for parameter, gradient, (mean, square) in zip(weights, gradients, moments, strict=True):
                mean.mul_(0.9).add_(0.1 * gradient)
                square.mul_(0.999).add_(0.001 * gradient**2)
                change = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
                parameter.data -= 0.01 * change
    for expected, parameter in zip(weights, found.parameters(), strict=True):
        assert torch.allclose(parameter, expected, atol=1e-5)


def test_what_is_a_class() -> None:
    assert is_class(torch.tensor([0, 1, 1], dtype=torch.uint8))
    assert not is_class(torch.rand(3))
    assert not is_class(torch.zeros(3, 2, dtype=torch.int64))
    assert is_class(torch.arange(64))
    assert not is_class(torch.arange(65))


def test_labels_that_can_be_learned() -> None:
    (train, labels), (test, truth) = examples(60, 0), examples(30, 1)
    extra = {"episode": torch.arange(60), "angle": torch.rand(60)}
    other = {"episode": torch.arange(60, 90), "angle": torch.rand(30)}
    found = run_probes(
        Latents(train, {"kind": labels, **extra}, torch.zeros(0)),
        Latents(test, {"kind": truth, **other}, torch.zeros(0)),
        torch.device("cpu"),
        Probe(num_epochs=1),
    )
    assert [name for name, _ in found] == ["kind"]


# ---------------------------------------------------------------- matching


def test_matching_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    for num_slots, num_objects in ((4, 3), (2, 3)):
        segmentation = torch.randint(num_slots, (6, 8, 8), generator=generator)
        target = torch.randint(num_objects + 1, (6, 8, 8), generator=generator)
        target[target == 2] = 0  # the second object is not seen
        match, overlap = match_objects(segmentation, target, num_slots=num_slots, num_objects=num_objects + 2)
        assert match.shape == overlap.shape == (6, num_objects + 2)
        for image in range(6):
            ious = np.array(
                [
                    [
                        ((segmentation[image] == k) & (target[image] == i)).sum().item()
                        / ((segmentation[image] == k) | (target[image] == i)).sum().item()
                        for i in (1, 3)
                    ]
                    for k in range(num_slots)
                ]
            )
            best = max(
                sum(ious[k, i] for i, k in enumerate(order)) for order in permutations(range(num_slots), 2)
            )
            assert overlap[image].sum().item() == pytest.approx(best)
            assert match[image, [1, 3, 4][: num_objects - 1]].tolist() == [-1] * (num_objects - 1)
            for column, i in ((0, 0), (2, 1)):
                assert overlap[image, column].item() == pytest.approx(ious[match[image, column], i])


def test_more_objects_than_slots() -> None:
    target = torch.tensor([[[1, 1, 1, 2, 2, 3]]])
    segmentation = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    match, overlap = match_objects(segmentation, target, num_slots=2, num_objects=3)
    assert match.tolist() == [[0, 1, -1]]
    assert overlap.tolist() == [[1.0, pytest.approx(2 / 3), 0.0]]


# ---------------------------------------------------------------- latents of models


class FakeModel(SceneModel):
    """Slots that show the colour and the place of each object; slots in another order in every image."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._hparams = {"num_background": 1}

    @property
    def hparams(self) -> Any:
        return self._hparams

    def predict_step(self, batch: Any, batch_idx: int) -> Scene:
        # an object's pixels hold its number in the red channel
        ids = (batch["image"][:, 0] * 255).round().long()
        order = torch.stack(
            [torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in batch["index"].tolist()]
        )
        masks = (ids[:, None] == order[:, :, None, None]).float()
        slots = (masks[:, :, None] * batch["image"][:, None]).amax(dim=(3, 4))
        return Scene(
            batch["image"][:, None].expand(-1, 4, -1, -1, -1),
            masks.unsqueeze(2).log(),
            latents={"slots": slots},
        )


class Objects:
    """Bars of random heights; of three objects two or three are there."""

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        ids = torch.zeros(len(indices), 8, 8, dtype=torch.uint8)
        green = torch.zeros(len(indices), 3, dtype=torch.uint8)
        for row, index in enumerate(indices):
            rng = np.random.default_rng(index)
            for number in range(1, 3 + index % 2):
                ids[row, 1 + number] = number
                green[row, number - 1] = int(rng.integers(1, 4))
        image = torch.stack(
            [
                ids,
                torch.cat([torch.zeros(len(indices), 1).byte(), 60 * green], dim=1)
                .gather(1, ids.flatten(1).long())
                .view_as(ids),
                ids * 0,
            ],
            dim=1,
        )
        present = green > 0
        return {
            "image": image,
            "index": torch.tensor(indices),
            "segmentation": ids,
            "objects": {"present": present, "shade": green, "level": 1.5 * green.float()},
        }


def test_slots_tell_of_their_objects() -> None:
    model = FakeModel()
    train, test = (collect(model, Objects(), range(*part)) for part in ((0, 300), (300, 400)))
    assert train.overlap.tolist() == [1.0] * 750
    assert train.slots.shape == (750, 3)
    assert train.properties.keys() == {"shade", "level"}
    assert torch.allclose(train.slots[:, 1] * 255, 60.0 * train.properties["shade"], atol=1e-3)
    scores = dict(run_probes(train, test, torch.device("cpu"), SETTINGS))
    assert scores.keys() == {"object_shade", "object_level"}
    assert scores["object_shade"].value > 0.98
    assert scores["object_level"].value > 0.98
    assert metrics_of(scores, test.overlap).keys() == {
        "probe_object_shade",
        "probe_object_shade_chance",
        "probe_object_level_r2",
        "probe_object_level_r2_chance",
        "probe_object_iou",
    }


SMALL: dict[type[SceneModel], tuple[dict[str, Any], int]] = {
    Genesis: ({"mask_dim": 8, "component_dim": 4, "feature_dim": 8}, 2 * 8 + 3 * 4),
    GenesisV2: ({"latent_dim": 8, "feature_dim": 8, "flexible_slots": True}, 3 * 8),
    MONet: ({"latent_dim": 8, "feature_dim": 4}, 3 * 8),
    VAE: ({"latent_dim": 8}, 8),
    SlotAttention: ({"slot_dim": 8, "feature_dim": 8}, 3 * 8),
    SRI: (
        {"encoder_options": {"latent_dim": 8, "feature_dim": 8}, "scene_dim": 6, "hidden_dim": 16},
        3 * 8 + 6,
    ),
}


@pytest.mark.parametrize("kind", SMALL)
def test_features_of_every_model(kind: type[SceneModel]) -> None:
    options, width = SMALL[kind]
    torch.manual_seed(0)
    model = kind(num_slots=3, image_size=32, **options).eval()
    images = torch.rand(5, 3, 32, 32)

    class Images:
        def __getitems__(self, indices: list[int]) -> dict[str, Any]:
            return {
                "image": images[indices],
                "index": torch.tensor(indices),
                "labels": {"i": torch.tensor(indices)},
            }

    found = collect(model, Images(), [0, 2, 3])
    assert found.features.shape == (3, width)
    assert found.labels["i"].tolist() == [0, 2, 3]
    # each image's noise is its own
    assert torch.allclose(collect(model, Images(), [2]).features, found.features[1:2], atol=1e-5)


def test_genesis_leaves_out_the_mask_latent_that_makes_no_mask() -> None:
    model = Genesis(num_slots=3, image_size=32, mask_dim=8, component_dim=4, feature_dim=8)
    sample = torch.rand(2, 3, 12)
    scene = Scene(torch.zeros(2, 3, 3, 4, 4), torch.zeros(2, 3, 1, 4, 4), latents={"sample": sample})
    features = model.representation(scene)
    kept = torch.cat([sample[:, :2, :8].flatten(1), sample[:, :, 8:].flatten(1)], dim=1)
    assert torch.equal(features.sort(dim=1).values, kept.sort(dim=1).values)
    single = Genesis(num_slots=3, image_size=32, mask_dim=8, two_stage=False, feature_dim=8)
    scene = Scene(torch.zeros(2, 3, 3, 4, 4), torch.zeros(2, 3, 1, 4, 4), latents={"sample": sample[..., :8]})
    assert single.representation(scene).shape == (2, 24)


@pytest.mark.parametrize(("two_stage", "width"), [(True, 656), (False, 576)])
def test_published_widths(two_stage: bool, width: int) -> None:
    """The reference features of the GENESIS paper for nine slots."""
    model = Genesis(num_slots=9, image_size=64, two_stage=two_stage)
    sample = torch.zeros(1, 9, sum(model.network.dims))
    scene = Scene(torch.zeros(1, 9, 3, 1, 1), torch.zeros(1, 9, 1, 1, 1), latents={"sample": sample})
    assert model.representation(scene).shape == (1, width)


def test_slots_not_in_use_are_zero() -> None:
    model = GenesisV2(num_slots=3, image_size=32, latent_dim=2, feature_dim=8)
    scene = Scene(
        torch.zeros(2, 3, 3, 1, 1),
        torch.zeros(2, 3, 1, 1, 1),
        latents={"sample": torch.ones(2, 3, 2)},
        num_active=torch.tensor([1, 3]),
    )
    assert model.representation(scene).tolist() == [[1, 1, 0, 0, 0, 0], [1] * 6]


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a model of synthetic ShapeStacks, and the exported model beside it."""
    folder = tmp_path_factory.mktemp("probes")
    # the test tower is as high as one of training, and one of them stands
    synthesis.write(folder / "raw", {"train": 2, "val": 1, "test": 1}, seed=7)
    options = {"root": str(folder / "data"), "raw": str(folder / "raw"), "image_size": 32, "num_slots": 3}
    ShapeStacks(**options).prepare()  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = VAE(num_slots=3, image_size=32, latent_dim=8)
    data = {"class_path": "data_modules.ShapeStacks", "init_args": options}
    export(model, folder / "model.safetensors", data)
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    made = folder / "vae_shapestacks-seed4"
    (made / "checkpoints").mkdir(parents=True)
    (made / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 4, "data": data}))
    from lightning_genesis.storage.checkpoint import write_checkpoint

    contents = {
        "model_class": "VAE",
        "hyper_parameters": dict(model.hparams),
        "state_dict": model.state_dict(),
        "global_step": 12,
    }
    write_checkpoint(made / "checkpoints/best.ckpt", contents)
    return made


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


FEW = ["--num_epochs", "3", "--device", "cpu"]


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(run), *FEW]) == 0
    out = capsys.readouterr().out
    assert "latents of 16 test images\ntraining a network for each question: 3 epochs\n" in out
    assert "stability: accuracy" in out
    (result,) = read_results(run)
    assert (result.model, result.dataset, result.split, result.num_images) == (
        "VAE",
        "shapestacks",
        "test",
        16,
    )
    assert (result.run, result.experiment, result.seed) == ("vae_shapestacks-seed4", "vae_shapestacks", 4)
    assert result.checkpoint is not None
    assert (result.checkpoint.path, result.checkpoint.step) == ("checkpoints/best.ckpt", 12)
    names = {
        f"probe_{name}{suffix}" for name in ("stability", "height", "view") for suffix in ("", "_chance")
    }
    assert result.metrics.keys() == names
    assert result.metrics["probe_view_chance"] == 1 / 16
    assert result.options["probe"]["hidden_dim"] == 512
    assert result.options["num_train"] == 32
    assert "probes trained on 32 images, 50000 in the GENESIS paper" in result.deviations
    assert "probes with num_epochs 3, 100 in the GENESIS paper" in result.deviations
    # twice the same
    assert main(["probe", str(run), *FEW]) == 0
    assert read_results(run) == [result]
    assert main(["probe", str(run), "--num_test", "4", *FEW]) == 0
    assert len(read_results(run)) == 2


def test_a_model_without_a_run(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, data = str(run.parent / "model.safetensors"), str(run.parent / "data.yaml")
    # a file does not choose where data lie
    assert main(["probe", model, "--root", str(run.parent / "data"), *FEW]) == 0
    assert "not written: give --output" in capsys.readouterr().out
    arguments = ["--data", data, "--output", str(tmp_path), *FEW]
    assert main(["probe", str(run / "checkpoints/best.ckpt"), *arguments]) == 0
    (result,) = read_results(tmp_path)
    (first, *_) = read_results(run)
    assert result.metrics.keys() == first.metrics.keys()
    assert result.seed is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--num_train", "0"], "probe: --num_train 0, expected 1 or more"),
        (["--learning_rate", "-1"], "probe: --learning_rate -1.0, expected more than 0"),
        (["--data", "nothing.yaml"], "probe: --data nothing.yaml: no such file"),
        (["--checkpoint", "newest"], "invalid choice: 'newest'"),
    ],
)
def test_wrong_use(run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    assert main(["probe", str(run), *arguments]) == 2
    assert line in error_line(capsys)


def test_data_that_do_not_fit(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checkpoint = str(run / "checkpoints/best.ckpt")
    assert main(["probe", checkpoint]) == 2
    assert "best.ckpt does not say which data it belongs to: give --data" in error_line(capsys)
    sprites: dict[str, Any] = {"root": str(tmp_path), "train_size": 4, "val_size": 4, "test_size": 4}
    for size, line in (
        (64, "is for images of 32 px, but the data are of 64 px"),
        (32, "multi_dsprites has no labels that are classes, and one slot tells no object from another"),
    ):
        data = {"class_path": "data_modules.MultiDSprites", "init_args": {**sprites, "image_size": size}}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
        assert main(["probe", checkpoint, "--data", str(tmp_path / "data.yaml"), *FEW]) == 2
        assert line in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MultiDSprites]:
    """A model of sprites as a file that knows its data, and these."""
    folder = tmp_path_factory.mktemp("sprites")
    options: dict[str, Any] = {"root": str(folder / "data"), "image_size": 32, "num_slots": 5}
    options |= {"train_size": 24, "val_size": 4, "test_size": 12}
    torch.manual_seed(0)
    model = GenesisV2(num_slots=5, image_size=32, latent_dim=4, feature_dim=8)
    data = {"class_path": "data_modules.MultiDSprites", "init_args": options}
    return export(model, folder / "model.safetensors", data), MultiDSprites(**options)


def test_every_factor_of_the_sprites_has_a_probe(
    sprites: tuple[Path, MultiDSprites], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, _ = sprites
    assert main(["probe", str(model), "--output", str(tmp_path), *FEW]) == 0
    (result,) = read_results(tmp_path)
    classes, numbers = ("shape", "depth"), ("color", "x", "y", "scale", "orientation", "visible")
    names = {*classes, *(f"{name}_r2" for name in numbers)}
    expected = {f"probe_object_{name}{suffix}" for name in names for suffix in ("", "_chance")}
    assert result.metrics.keys() == expected | {"probe_object_iou"}
    assert all(value is not None for value in result.metrics.values())


def test_a_store_of_before_factors(
    sprites: tuple[Path, MultiDSprites], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, data = sprites
    without_objects(data, tmp_path)
    capsys.readouterr()
    assert main(["probe", str(model), "--root", str(tmp_path), *FEW]) == 2
    line = error_line(capsys)
    assert f"{data.folder_name()}/train-24: made before factors of objects were kept; remove it and" in line
    assert f"run `lightning-genesis prepare multi_dsprites --root {tmp_path} " in line


def test_noise_belongs_to_the_image() -> None:
    model = VAE(num_slots=1, image_size=32, latent_dim=4).eval()
    images = torch.rand(2, 3, 32, 32)
    whole = model.representation(model(images, IndexedNoise(0, [3, 9])))
    assert torch.allclose(model.representation(model(images[1:], IndexedNoise(0, [9]))), whole[1:], atol=1e-6)
