"""`lightning-genesis demo`: the main job, small, on data that it makes itself."""

import csv
from collections.abc import Sequence
from pathlib import Path
from warnings import catch_warnings

import torch
from pytorch_lightning import Trainer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from data_modules import SceneDataModule
from lightning_genesis.commands.arguments import CommandParser, check_numbers
from lightning_genesis.commands.fit import ExperimentCLI
from lightning_genesis.figures import random_walk, walk_frames, write_gif
from lightning_genesis.figures.drawing import reconstruction_grid, sample_grid, stack, titled, write_picture
from lightning_genesis.figures.walk import PERIOD
from lightning_genesis.models import SceneModel
from lightning_genesis.runs.experiments import experiments_folder
from lightning_genesis.runs.loading import load
from lightning_genesis.runs.priors import use_prior
from lightning_genesis.runs.zoo import find_weights
from lightning_genesis.scene import IndexedNoise

EXPERIMENT = "quickstart_monet.yaml"
"""Has the sharpest masks and the least error of the quickstarts after five minutes (docs/results.md)."""
SHIPPED = "zoo:monet_sprites"
PRIOR = "set_flow"
"""Fitted to the shipped model's slots; it comes along too."""
NEXT = (
    "sample {shipped} --prior {prior} --output new-scenes",
    "fit --config quickstart --data ImageFolder --data.folder PICTURES --data.image_size 32 "
    "--data.num_slots 4 --run.name own",
    "report {run} --output report",
)
"""Commands for who has seen the demo."""
COLUMNS = {
    "MSE": "test/mse",
    "ELBO": "test/elbo",
    "ARI-FG": "test/ari_fg_attention",
    "mSC-FG": "test/msc_fg_attention",
}


def main(args: Sequence[str]) -> None:
    """Trains a small MONet, scores it beside an untrained model, and shows the weights that are shipped.

    It runs in any folder: the experiment, the data's renderer and the weights come along.
    """
    parser = CommandParser(prog="lightning-genesis demo", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training at most")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    options = parser.parse_args(list(args))
    check_numbers("demo", options, {"minutes": 0})
    experiment = experiments_folder() / EXPERIMENT
    run = next(Path(options.root) / f"demo-{n}" for n in range(1, 10_000) if not _taken(options.root, n))
    common = ["--config", str(experiment), "--run.root", options.root, "--run.name", run.name]
    common += ["--run.wandb", "false"]
    limit = ["--trainer.max_time", f"00:00:{int(options.minutes):02d}:{round(options.minutes % 1 * 60):02d}"]

    quiet = ["--fid.num_images", "0", "--trainer.enable_progress_bar", "false"]
    with catch_warnings(action="ignore"):  # that weights are untrained: here they are to be
        untrained = ExperimentCLI(["test", *common, *quiet, "--pictures.num_images", "0"], talks=False)
    trained = ExperimentCLI(["fit", *common, *limit], talks=False)
    tested = ExperimentCLI(["test", *common, *quiet, "--ckpt_path", "last"], talks=False)

    rows = {
        "constant image": {"test/mse": constant_image_error(tested.datamodule)},
        "untrained": _scores(untrained.trainer),
        f"trained {trained.trainer.global_step} steps": _scores(tested.trainer),
    }
    model, data = load(SHIPPED)
    weights = find_weights(SHIPPED)
    use_prior(model, weights, PRIOR, weights)
    data.root = tested.datamodule.root
    rows["shipped weights"] = score(model, data)
    own = f"yours, {trained.trainer.global_step:,} steps"
    pictures = draw({own: tested.model.eval(), "shipped weights": model}, data, run / "pictures")
    pictures += [run / "pictures" / f"{name}.png" for name in ("test_reconstructions", "test_samples")]
    show(type(trained.model).__name__, rows, pictures, run)


def losses(run: Path) -> list[float]:
    """Every logged training loss of a run."""
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


def _taken(root: str, n: int) -> bool:
    return (Path(root) / f"demo-{n}").exists()


def score(model: SceneModel, data: SceneDataModule) -> dict[str, float]:
    """A model's scores on its data's test split."""
    data.prepare()
    trainer = Trainer(
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    trainer.test(model, datamodule=data, verbose=False)
    return _scores(trainer)


def _scores(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def constant_image_error(data: SceneDataModule) -> float:
    """Squared error of the best image of one colour, each image its own: what a model beats first."""
    data.setup("test")
    errors = []
    for batch in data.test_dataloader():
        images = batch["image"].double() / 255.0
        errors.append((images - images.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3)))
    return float(torch.cat(errors).mean())


@torch.no_grad()
def draw(
    models: dict[str, SceneModel], data: SceneDataModule, folder: Path, num_images: int = 4
) -> list[Path]:
    """What models make of the same test images, and what the last of them imagines, by their names.

    Returns:
        the picture of all this, and a walk through the scenes of the last.
    """
    batch = data.examples("test", num_images)
    images = batch["image"].float() / 255.0
    parts = []
    for name, model in models.items():
        scene = model(images, IndexedNoise(0, batch["index"]))
        parts.append(titled(f"{name}: test images taken apart", reconstruction_grid(images, scene)))
    samples = model.sample(num_images, noise=IndexedNoise(1, range(num_images)))
    parts.append(titled(f"{name}, prior {PRIOR}: new scenes", sample_grid(samples)))
    paths = [folder / "demo.png", folder / "walk.gif"]
    write_picture(paths[0], stack(parts))
    write_gif(paths[1], walk_frames(random_walk(model, 4 * PERIOD)))
    return paths


def show(kind: str, rows: dict[str, dict[str, float]], pictures: list[Path], run: Path) -> None:
    """Prints the table and where everything is."""
    table = Table("", *COLUMNS, title=f"{kind}, test split, by attention masks", box=SIMPLE_HEAD)
    for name, values in rows.items():
        cells = [f"{values[key]:.4g}" if key in values else "" for key in COLUMNS.values()]
        table.add_row(name, *cells)
    console = Console(soft_wrap=True)
    console.print(table)
    if history := losses(run):
        console.print(f"loss: {history[0]:.4g} -> {history[-1]:.4g} nats per image")
    console.print("Masks that know nothing of objects score above 0 too: compare with the untrained row.")
    console.print(f"run folder: {run}")
    for path in pictures:
        console.print(f"  {path}")
    console.print("to try next:")
    for command in NEXT:
        filled = command.format(shipped=SHIPPED, prior=PRIOR, run=run)
        console.print(f"  lightning-genesis {filled}", markup=False)
