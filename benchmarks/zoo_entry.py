"""Makes an entry of the zoo: weights, experiment and card, with scores of fresh test scenes.

    python benchmarks/zoo_entry.py WEIGHTS.safetensors NAME ABOUT.yaml

WEIGHTS is what `lightning-genesis export` wrote. ABOUT has what a person says of it: the keys of a card
(`lightning_genesis/runs/zoo.py`) without those that are measured here. Scores are means over the data's test
split of `--num_images` images; their errors are those of the mean, from 20 parts of it.
"""

import argparse
import math
import shutil
import statistics
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torchmetrics import Metric

from lightning_genesis.classes import class_path
from lightning_genesis.models import SceneModel
from lightning_genesis.models.scores import Scores
from lightning_genesis.runs.loading import load
from lightning_genesis.runs.zoo import KEYS, PREFIX, zoo_folder
from lightning_genesis.storage.checkpoint import read_checkpoint
from lightning_genesis.storage.files import sha256_of, whole_folder
from lightning_genesis.storage.yaml_file import read_mapping

PARTS = 20
KEPT = ("ari_fg", "ari", "msc_fg", "mse", "elbo", "nll", "kl")
MEASURED = ("sha256", "num_images", "scores", "test")
LINKED = ("num_slots", "image_size")
"""Of a model, what `fit` takes from the data."""


def score(weights: str | Path, num_images: int, root: str, **options: Any) -> dict[str, list[float]]:
    """Scores of some weights on their data's test split, by name: mean and standard error.

    Args:
        weights: what `load` takes.
        num_images: a multiple of `PARTS`.
        root: where the data are, or are made.
        options: attributes of the data module that are others than the weights name.
    """
    model, data = load(weights)
    data.root = root
    for name, value in {"test_size": num_images, "batch_size": num_images // PARTS, **options}.items():
        setattr(data, name, value)
    data.prepare()
    data.setup("test")
    values: dict[str, list[float]] = {}
    with torch.no_grad():
        for number, batch in enumerate(data.test_dataloader()):
            for name, metric in _scores_of(model, batch, number).items():
                values.setdefault(name, []).append(float(metric.compute()))
                metric.reset()
    assert all(len(each) == PARTS for each in values.values()), "num_images is no multiple"
    return {
        name: [statistics.mean(each), statistics.stdev(each) / math.sqrt(PARTS)]
        for name, each in values.items()
        if name.removesuffix("_attention") in KEPT
    }


def _scores_of(model: SceneModel, batch: dict[str, Any], number: int) -> dict[str, Metric]:
    model.test_step(model.on_after_batch_transfer(batch, 0), number)
    used = cast(Scores, cast(Any, model.scores)["test"]).used(torch.device("cpu"))
    return {name.removeprefix("test/"): metric for name, metric in used.items()}


def experiment(weights: Path, name: str, about: dict[str, Any]) -> str:
    """The configuration that trains on from the weights."""
    model, _ = load(weights)
    data = read_checkpoint(weights)["data"]
    sections = {
        "model": {
            "class_path": class_path(type(model)),
            "init_args": {key: value for key, value in model.hparams.items() if key not in LINKED},
        },
        "data": {"class_path": data["class_path"], "init_args": {"root": "data", **data["init_args"]}},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 100_000,
            "val_check_interval": 500,
            "log_every_n_steps": 50,
        },
    }
    header = f"# {about['system']}, {about['data']}; the last stage of the training of {PREFIX}{name}.\n"
    return header + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("name", help="such as genesis-v2_sprites")
    parser.add_argument("about", type=Path)
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--root", default="data")
    options = parser.parse_args()
    about = read_mapping(options.about)
    wanted = set(KEYS) - set(MEASURED)
    if about.keys() != wanted:
        raise SystemExit(f"{options.about}: keys {sorted(about)}, expected {sorted(wanted)}")
    if options.num_images % PARTS:
        raise SystemExit(f"--num_images {options.num_images}, expected a multiple of {PARTS}")
    scores = score(options.weights, options.num_images, options.root)
    target = f"{PREFIX}{options.name}"
    card = {
        **about,
        "sha256": sha256_of(options.weights),
        "num_images": options.num_images,
        "scores": {name: [float(f"{number:.4g}") for number in pair] for name, pair in scores.items()},
        "test": f"lightning-genesis test --config {target} --ckpt_path {target} "
        f"--data.test_size {options.num_images}",
    }
    with whole_folder(zoo_folder() / options.name) as folder:
        shutil.copyfile(options.weights, folder / f"{options.name}.safetensors")
        (folder / f"{options.name}.yaml").write_text(experiment(options.weights, options.name, about))
        text = yaml.safe_dump(
            {key: card[key] for key in KEYS}, sort_keys=False, allow_unicode=True, width=110
        )
        (folder / "card.yaml").write_text(text)
    for name, (mean, error) in scores.items():
        print(f"{name} {mean:.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
