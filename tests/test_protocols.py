"""`test --protocol`: the right images under the right rules, and what is written about them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from data_modules.base import StoreDataset
from lightning_genesis.callbacks.fid import FIDCallback
from lightning_genesis.callbacks.results import OF_THEIR_OWN
from lightning_genesis.cli import main
from lightning_genesis.evaluation import inception
from lightning_genesis.evaluation.protocols import LIKELIHOOD, PROTOCOLS, general_deviations
from lightning_genesis.evaluation.split import EvaluatedSplit, choose_images
from lightning_genesis.metrics import CONVENTIONS
from lightning_genesis.models.base import EVALUATION_SEED
from lightning_genesis.models.contract import LINKED
from lightning_genesis.report.runs import read_run
from lightning_genesis.report.tables import make_sections
from lightning_genesis.runs.loading import load
from lightning_genesis.runs.results import Result, read_results
from lightning_genesis.scene import IndexedNoise
from lightning_genesis.storage.checkpoint import read_checkpoint

NUM_TEST, NUM_VAL = 11, 7
CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "lightning_genesis.models.GenesisV2",
        "init_args": {"feature_dim": 8, "latent_dim": 8, "flexible_slots": True, "min_pixels": 150.0},
    },
    "data": {
        "class_path": "data_modules.MultiDSprites",
        "init_args": {
            "image_size": 32,
            "train_size": 8,
            "val_size": NUM_VAL,
            "test_size": NUM_TEST,
            "batch_size": 4,
        },
    },
    "trainer": {"max_steps": 3, "val_check_interval": 3, "accelerator": "cpu", "callbacks": None},
    "pictures": {"num_images": 0},
    "fid": {"num_images": 0},
    "run": {"wandb": False},
}
Command = Callable[..., int]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protocols")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "tiny.yaml", "--trainer.enable_progress_bar", "false"]) == 0
    return folder / "runs" / "tiny-seed0"


@pytest.fixture
def evaluate(run: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(run.parents[1])

    def command(*args: str) -> int:
        for path in (run / "metrics").glob("*"):
            path.unlink()
        shared = ("--ckpt_path", "last", "--trainer.enable_progress_bar", "false")
        return main(["test", "--config", str(run / "config.yaml"), *shared, *args])

    return command


def results(run: Path) -> dict[str | None, Result]:
    found = read_results(run)
    assert len({result.protocol for result in found}) == len(found)
    return {result.protocol: result for result in found}


def fewer(monkeypatch: pytest.MonkeyPatch, name: Any, num_images: int) -> None:
    monkeypatch.setitem(PROTOCOLS, name, replace(PROTOCOLS[name], num_images=num_images))


# ---------------------------------------------------------------- the table


def test_the_papers_numbers() -> None:
    """specs: GENESIS 300 images, GENESIS-V2, SRI and EMORL 320, SRI's ablations 5 000 for validation."""
    assert {name: (p.split, p.num_images) for name, p in PROTOCOLS.items()} == {
        "genesis": ("test", 300),
        "genesisv2": ("test", 320),
        "sri": ("test", 320),
        "sri-ablations": ("val", 5000),
        "emorl": ("test", 320),
        "clevrtex": ("test", None),
    }
    assert all(protocol.convention in CONVENTIONS for protocol in PROTOCOLS.values())
    assert PROTOCOLS["emorl"].target_sizes == {"clevr6": 192}
    assert {name for name, p in PROTOCOLS.items() if LIKELIHOOD in p.likelihood} == {
        *("genesisv2", "sri-ablations")  # the papers that print a bound
    }
    assert PROTOCOLS["genesisv2"].headline_of("apc")[:2] == ("ari", "msc")
    assert PROTOCOLS["genesisv2"].headline_of("shapestacks")[:2] == ("ari_fg", "msc_fg")


@pytest.mark.parametrize(
    ("protocol", "dataset", "expected"),
    [
        ("genesis", "shapestacks", 5),  # Section 4.2: "five models trained with different random seeds"
        ("genesis", "multi_dsprites", None),  # Table 2
        ("genesis", "gqn", None),
        ("genesisv2", "objects_room", 3),
        ("genesisv2", "sketchy", 1),  # Section 4.2: "each model is only trained with a single random seed"
        ("genesisv2", "apc", 1),
        ("sri", "clevr6", 3),
        ("sri-ablations", "shapestacks", 3),
        ("emorl", "tetrominoes", None),
        ("clevrtex", "clevrtex", 3),
        ("genesisv2", "clevr6", None),
    ],
)
def test_seeds_behind_a_published_mean(protocol: Any, dataset: str, expected: int | None) -> None:
    assert PROTOCOLS[protocol].rules(split(dataset))["num_seeds"] == expected


@pytest.mark.parametrize(("length", "count"), [(1000, 320), (5, 320), (0, 3), (10_000, 1)])
def test_choice_of_images(length: int, count: int) -> None:
    chosen = choose_images(length, count)
    assert len(chosen) == min(length, count)
    assert chosen == sorted(set(chosen)) == choose_images(length, count)
    assert set(choose_images(length, count // 2)) <= set(chosen)
    if length == 1000:
        assert chosen != choose_images(length, count, seed=1)
        assert abs(np.mean(chosen) - 500) < 50


def split(name: str, **settings: Any) -> EvaluatedSplit:
    return EvaluatedSplit([], name, "test", {"settings": settings}, None)


@pytest.mark.parametrize(
    ("protocol", "arguments", "expected"),
    [
        ("genesisv2", (split("shapestacks"), 320, 64, 64), []),
        ("genesisv2", (split("sketchy"), 320, 128, None), []),
        ("emorl", (split("clevr6"), 320, 96, 192), []),
        ("emorl", (split("emorl_hdf5", variant="clevr6"), 320, 96, 192), []),
        ("emorl", (split("clevr6"), 320, 96, 96), ["masks scored at 96x96, 192x192 in the protocol"]),
        ("genesis", (split("gqn"), 299, 64, None), ["scores over 299 images, 300 in the protocol"]),
        (
            "sri",
            (split("clevr6"), 320, 64, 64),
            ["images of 64x64, 96x96 in the protocol"],
        ),
        ("sri-ablations", (split("gqn"), 5000, 64, None), ["the paper does not evaluate gqn"]),
    ],
)
def test_deviations(protocol: Any, arguments: Any, expected: list[str]) -> None:
    assert PROTOCOLS[protocol].deviations(*arguments) == expected


def test_the_rules_of_a_dataset() -> None:
    found = PROTOCOLS["emorl"].rules(split("emorl_hdf5", variant="clevr6"))
    assert (found["image_size"], found["target_size"]) == (96, 192)
    found = PROTOCOLS["genesisv2"].rules(split("apc"))
    assert (found["image_size"], found["target_size"], found["headline"][0]) == (128, 128, "ari")


def test_masks_of_full_size_are_no_difference() -> None:
    tags = ["full_masks", "64px"]
    assert general_deviations(split("clevr6", differs_from_paper=tags), {}) == ["data: 64px"]


# ---------------------------------------------------------------- the numbers


def test_scores_the_chosen_images(evaluate: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image by image, in another order, with scikit-learn."""
    fewer(monkeypatch, "genesisv2", 6)
    assert evaluate("--protocol", "genesisv2") == 0
    model, data = load(run, "last")
    data.prepare()
    scores: dict[str, list[float]] = {"ari": [], "ari_attention": [], "num_active": [], "num_active_mae": []}
    scores |= {"elbo": [], "mse": []}
    for index in reversed(range(NUM_TEST)):
        batch = data.dataset("test").__getitems__([index])  # type: ignore[attr-defined]
        image, target = batch["image"] / 255, batch["segmentation"][0].flatten()
        with torch.no_grad():
            scene = model(image, IndexedNoise(EVALUATION_SEED, [index]))
            elbo = model.elbo(scene, image)
        assert elbo is not None
        for kind, suffix in (("decoded", ""), ("attention", "_attention")):
            labels = scene.segmentation(kind).flatten()  # type: ignore[arg-type]
            scores[f"ari{suffix}"].append(adjusted_rand_score(target, labels))
        assert scene.num_active is not None
        active = int(scene.num_active)
        scores["num_active"].append(active)
        scores["num_active_mae"].append(abs(active - 1 - len(set(target.tolist()) - {0})))
        scores["elbo"].append(float(elbo))
        scores["mse"].append(float((scene.reconstruction - image).square().mean()))
    assert len(set(scores["num_active"])) > 1
    found = results(run)
    chosen = choose_images(NUM_TEST, 6)
    for name, values in scores.items():
        by_image = values[::-1]
        assert found[None].metrics[name] == pytest.approx(np.mean(by_image), rel=1e-5, abs=1e-6)
        part = np.mean([by_image[index] for index in chosen])
        assert found["genesisv2"].metrics[name] == pytest.approx(part, rel=1e-5, abs=1e-6)
    assert (found[None].num_images, found["genesisv2"].num_images) == (NUM_TEST, 6)


def test_what_is_written(evaluate: Command, run: Path) -> None:
    assert evaluate("--protocol", "genesisv2", "--importance_samples", "2") == 0
    found = results(run)
    assert set(found) == {None, "genesisv2"}
    part = found["genesisv2"]
    checkpoint = run / "checkpoints/last.ckpt"
    assert part.checkpoint is not None
    assert part.checkpoint.path == "checkpoints/last.ckpt"
    assert part.checkpoint.step == read_checkpoint(checkpoint)["global_step"] == 3
    assert (part.model, part.run, part.experiment) == ("GenesisV2", "tiny-seed0", "tiny")
    assert (part.dataset, part.synthetic, part.split, part.seed) == ("multi_dsprites", False, "test", 0)
    assert f"scores over {NUM_TEST} images, 320 in the protocol" in part.deviations
    assert "data: 32px" in part.deviations
    assert part.options["importance_samples"] == 2
    bound, elbo = part.metrics["importance_bound"], part.metrics["elbo"]
    assert bound is not None
    assert elbo is not None
    assert bound > elbo
    assert part.metrics["importance_bits_per_dim"] == pytest.approx(-bound / (3 * 32**2 * np.log(2)))
    assert part.metrics["bits_per_dim"] == pytest.approx(-elbo / (3 * 32**2 * np.log(2)))
    text = "".join(path.read_text() for path in (run / "metrics").iterdir())
    assert str(run.parents[1]) not in text


def test_the_rules_are_stored_with_the_numbers(evaluate: Command, run: Path) -> None:
    assert evaluate("--protocol", "genesisv2") == 0
    found = results(run)
    assert found[None].rules is None
    protocol = PROTOCOLS["genesisv2"]
    assert found["genesisv2"].rules == {
        "source": "GENESIS-V2 (NeurIPS 2021), Section 4",
        "split": "test",
        "num_images": 320,
        "image_size": None,  # the paper does not evaluate these data
        "target_size": None,
        "masks": "not said",
        "convention": "genesis",
        "headline": list(protocol.headline),
        "num_seeds": None,
        "likelihood": protocol.likelihood,
        "enlarge": "nearest",
        "matched": False,
        "selection_seed": 0,
    }


def test_model_values_given_for_a_test_have_a_file_and_a_row_of_their_own(
    evaluate: Command, run: Path
) -> None:
    shared = ("--config", str(run / "config.yaml"), "--ckpt_path", "last")
    fixed = ("--model.flexible_slots", "false")
    assert evaluate(*fixed) == 0
    assert main(["test", *shared, "--trainer.enable_progress_bar", "false"]) == 0
    assert main(["test", *shared, "--trainer.enable_progress_bar", "false", *fixed]) == 0  # once more
    first, second = sorted(read_results(run), key=lambda result: result.metrics["num_active"] or 0)
    values = first.options["model"]
    assert (values["flexible_slots"], values["min_pixels"]) == (True, 150.0)
    assert second.options == {**first.options, "model": {**values, "flexible_slots": False}}
    assert second.metrics["num_active"] == 5
    assert first.metrics["num_active"] != 5
    (section,), problems = make_sections([read_run(run)])
    assert problems == []
    assert {row.label for table in section.tables for row in table.rows} == {
        "tiny (flexible_slots true)",
        "tiny (flexible_slots false)",
    }


def test_which_model_values_are_left_out() -> None:
    """Besides training's: those that the options have under another name."""
    assert set(OF_THEIR_OWN) == {*LINKED, "std", "metric_convention"}


def test_defaults_of_fid_are_the_papers() -> None:
    fid = FIDCallback()
    assert (fid.num_images, fid.temperature, fid.roundings) == (10_000, 1.0, ("truncate", "round"))


@pytest.mark.slow  # `tests/test_evaluation_ranks.py` does so for each kind of model
def test_twice_the_same_bytes_and_any_batch_size(evaluate: Command, run: Path) -> None:
    def contents(*args: str) -> list[bytes]:
        assert evaluate("--protocol", "sri", "--importance_samples", "3", *args) == 0
        return [path.read_bytes() for path in sorted((run / "metrics").iterdir())]

    first = contents()
    assert first == contents()
    for one, other in zip(first, contents("--data.batch_size", "3"), strict=True):
        numbers, others = json.loads(one), json.loads(other)
        assert numbers.pop("metrics") == pytest.approx(others.pop("metrics"), rel=1e-5, abs=1e-6)
        assert numbers == others


@pytest.mark.slow
def test_fid_with_the_whole_network(
    evaluate: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights in the place of the published ones, which a machine without a connection has not."""
    torch.save(inception.InceptionFeatures().network.state_dict(), tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "WEIGHTS", replace(inception.WEIGHTS, sha256=digest))
    options = ("--fid.num_images", "4", "--fid.weights", str(tmp_path / "weights.pth"))
    assert evaluate(*options, "--fid.cache", str(tmp_path)) == 0
    (result,) = read_results(run)
    assert {"fid", "fid_round", "kid", "kid_round"} <= result.metrics.keys()
    assert result.options["fid"]["num_images"] == 4
    assert "FID and KID over 4 images, 10000 in the papers" in result.deviations


def test_the_validation_split(evaluate: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer(monkeypatch, "sri-ablations", 3)
    assert evaluate("--protocol", "sri-ablations") == 0
    found = results(run)
    assert {result.split for result in found.values()} == {"val"}
    assert (found[None].num_images, found["sri-ablations"].num_images) == (NUM_VAL, 3)
    assert sorted(path.name[:-14] for path in (run / "metrics").iterdir()) == ["val", "val-sri-ablations"]
    assert main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "last"]) == 0
    log = (run / "validate.csv").read_text().splitlines()
    validated = dict(zip(log[0].split(","), log[-1].split(","), strict=True))
    assert float(validated["val/elbo"]) == pytest.approx(found[None].metrics["elbo"], rel=1e-6)


def test_edge_cases_are_the_protocols(evaluate: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen scenes without their objects: GENESIS counts 1 for these, EMORL 0."""
    chosen, read = choose_images(NUM_TEST, 4), StoreDataset.__getitems__

    def without_objects(dataset: StoreDataset, indices: list[int]) -> Any:
        batch = read(dataset, indices)
        batch["segmentation"][torch.isin(batch["index"], torch.tensor(chosen))] = 0
        return batch

    monkeypatch.setattr(StoreDataset, "__getitems__", without_objects)
    scores = {}
    for name in ("genesisv2", "sri"):
        fewer(monkeypatch, name, 4)
        assert evaluate("--protocol", name) == 0
        scores[name] = results(run)[name].metrics["ari_fg"]
    assert scores == {"genesisv2": 1.0, "sri": 0.0}


def test_masks_are_enlarged_as_the_protocol_says(
    evaluate: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ground truth of twice the side: the model's own masks, enlarged by Pillow as EMORL does."""
    model, data = load(run, "last")
    data.prepare()
    targets = []
    for index in range(NUM_TEST):
        image = data.dataset("test").__getitems__([index])["image"] / 255  # type: ignore[attr-defined]
        with torch.no_grad():
            masks = model(image, IndexedNoise(EVALUATION_SEED, [index])).log_masks[0, :, 0].exp()
        slots = [Image.fromarray(mask.numpy()).resize((64, 64), Image.Resampling.BICUBIC) for mask in masks]
        targets.append(torch.from_numpy(np.stack([np.asarray(slot) for slot in slots])).argmax(0).byte())
    read = StoreDataset.__getitems__

    def with_targets(dataset: StoreDataset, indices: list[int]) -> Any:
        return {**read(dataset, indices), "segmentation": torch.stack([targets[index] for index in indices])}

    monkeypatch.setattr(StoreDataset, "__getitems__", with_targets)
    found = {}
    for name in ("emorl", "sri"):
        fewer(monkeypatch, name, 6)
        assert evaluate("--protocol", name) == 0
        found[name] = results(run)[name]
    assert found["emorl"].metrics["ari"] == pytest.approx(1, abs=1e-3)
    ids_enlarged = found["sri"].metrics["ari"]
    assert ids_enlarged is not None
    assert ids_enlarged < 0.99
    assert "masks scored at 64x64, 32x32 in the protocol" in found["sri"].deviations


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--protocol", "genesis3"), "protocol"),
        (("--importance_samples", "-1"), "importance_samples: -1, expected 0 or more"),
        (("--fid.num_images", "1"), "fid.num_images: 1, expected 2 or more"),
        (("--fid.weights", "absent.pth", "--fid.num_images", "5"), "absent.pth: no such file"),
    ],
)
def test_one_line(
    evaluate: Command, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], expected: str
) -> None:
    assert evaluate(*args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-genesis")]
    assert len(lines) == 1
    assert expected in lines[0]


def test_no_likelihood_no_bound(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(run.parents[1])
    config = {**CONFIG, "model": {"class_path": "lightning_genesis.models.SlotAttention"}}
    Path("slots.yaml").write_text(yaml.safe_dump(config))
    assert main(["test", "--config", "slots.yaml", "--importance_samples", "4"]) == 2
    assert "SlotAttention has no likelihood; leave it out" in capsys.readouterr().err
