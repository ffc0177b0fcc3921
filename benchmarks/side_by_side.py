"""Trains the quickstart's small models on the same scenes with the same CPU time each, and prints one table.

    OMP_NUM_THREADS=1 python benchmarks/side_by_side.py --seconds 180 --seeds 0 1 2
    lightning-genesis prepare shapestacks --synthetic 500 --image_size 32
    OMP_NUM_THREADS=1 python benchmarks/side_by_side.py --seconds 300 --data shapestacks

On a shared machine a limit of wall-clock time would depend on who else is at work. So the CPU time of one
training step is measured first, for each model; from it follows how many steps fit into `--seconds` of one
core. Then come, for each model and seed, the commands

    lightning-genesis fit --config experiments/EXPERIMENT.yaml --seed_everything S --trainer.max_steps N
    lightning-genesis test --config experiments/EXPERIMENT.yaml --seed_everything S --ckpt_path last
    lightning-genesis test --config experiments/EXPERIMENT.yaml --seed_everything S

without validation on the way, the last one for the untrained model. Everything is kept in `--root`: the same
command again goes on where it was stopped and measures and scores nothing twice; `--print` only prints what
is there. Several processes may share the work, with `--models` of their own.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytorch_lightning as pl
import torch

from lightning_genesis.commands.fit import ExperimentCLI

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
MODELS = {
    "GENESIS": ("quickstart_genesis", ()),
    "GENESIS-S": ("quickstart_genesis", ("--model.two_stage", "false")),
    "GENESIS-V2": ("quickstart", ()),
    "MONet": ("quickstart_monet", ()),
    "Slot Attention": ("quickstart_slot_attention", ()),
    "SRI": ("quickstart_sri", ()),
}
"""Experiment and further options of each row."""
OWN_DATA = "multi_dsprites"
SHAPESTACKS = (
    *("--data", str(EXPERIMENTS / "data/shapestacks.yaml"), "--data.synthetic", "500"),
    *("--data.image_size", "32", "--data.batch_size", "8", "--data.num_slots", "7"),
)
GAUSSIAN = ("--model.likelihood", "gaussian", "--model.std", "0.1", "--model.learning_rate", "2e-3")
GAUSSIAN += ("--model.objective.beta", "1e-3")
CONSISTENT = ("--model.mask_consistency", "true", "--model.detach_decoded_masks", "false")
OTHER_DATA: dict[str, dict[str, tuple[str, ...]]] = {
    "shapestacks": {
        "GENESIS": (*SHAPESTACKS, "--model.std", "0.2", "--model.learning_rate", "7e-4"),
        "GENESIS-V2": (*SHAPESTACKS, *GAUSSIAN, "--model.latent_dim", "32", *CONSISTENT),
        "MONet": (*SHAPESTACKS, "--model.std", "0.15", "--model.learning_rate", "2e-3"),
        "Slot Attention": (*SHAPESTACKS, "--model.learning_rate", "1e-3"),
        "SRI": (*SHAPESTACKS, *GAUSSIAN, "--model.encoder_options.latent_dim", "32"),
    }
}
"""What other data change, for the models that are compared on them."""
COLUMNS = {
    "ARI-FG decoded": ("ari_fg", 2),
    "ARI-FG attention": ("ari_fg_attention", 2),
    "mSC-FG decoded": ("msc_fg", 2),
    "mSC-FG attention": ("msc_fg_attention", 2),
    "MSE": ("mse", 4),
    "ELBO, nats": ("elbo", 0),
}
"""Score and decimals of each column."""
WARMUP_STEPS, MEASURED_STEPS = 20, 100


class StepClock(pl.Callback):
    """CPU time of this process at the end of every training step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Reads the clock."""
        self.times.append(time.process_time())

    def seconds_per_step(self) -> float:
        """Median over the steps after the first few, in seconds."""
        times = self.times[WARMUP_STEPS:]
        return median(after - before for before, after in pairwise(times))


class ClockedCLI(ExperimentCLI):
    """The training command with a clock."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds the clock."""
        trainer = super().instantiate_trainer(**kwargs)
        self.clock = StepClock()
        cast(Any, trainer).callbacks.append(self.clock)
        return trainer


def arguments(model: str, data: str, seed: int, root: Path, run: str) -> list[str]:
    """What all commands of a run have in common."""
    experiment, options = MODELS[model]
    if data != OWN_DATA:
        options += OTHER_DATA[data][model]
    return [
        *("--config", str(EXPERIMENTS / f"{experiment}.yaml"), "--seed_everything", str(seed)),
        *("--run.root", str(root), "--run.name", run, "--run.wandb", "false"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *options,
    ]


def run_name(model: str, data: str, seed: int, seconds: float) -> str:
    """Folder of a run, named like the papers' experiments, so that the report has a row for each model."""
    short = model.lower().replace(" ", "").replace("-", "")
    return f"{short}_{data.replace('_', '')}_{seconds:g}s-seed{seed}"


def seconds_per_step(model: str, data: str, root: Path) -> float:
    """CPU time of a training step, data and logging included, measured once per folder."""
    path = root / f"{run_name(model, data, 0, 0)}-step.json"
    if not path.is_file():
        steps = str(WARMUP_STEPS + MEASURED_STEPS + 1)
        common = arguments(model, data, 0, root, f"{path.stem}-measured")
        limits = ["--trainer.max_steps", steps, "--trainer.enable_checkpointing", "false"]
        cli = ClockedCLI(["fit", *common, *limits, "--trainer.limit_val_batches", "0"])
        path.write_text(json.dumps({"seconds_per_step": cli.clock.seconds_per_step()}))
    return float(json.loads(path.read_text())["seconds_per_step"])


def scores(trainer: pl.Trainer) -> dict[str, float]:
    """The scores of the test split by their short names."""
    return {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}


def train(model: str, data: str, seed: int, root: Path, seconds: float) -> dict[str, Any]:
    """Trains and scores one model once, and scores it untrained; what is finished is only read."""
    run = run_name(model, data, seed, seconds)
    path = root / f"{run}.json"
    if not path.is_file():
        common = arguments(model, data, seed, root, run)
        per_step = seconds_per_step(model, data, root)
        steps = round(seconds / per_step)
        untrained = ExperimentCLI(
            ["test", *arguments(model, data, seed, root, f"{run}-untrained"), "--pictures.num_images", "0"]
        )
        limits = ["--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0"]
        limits += ["--trainer.max_time", "null", "--ckpt_path", "last"]
        start = time.process_time()
        fit = ClockedCLI(["fit", *common, *limits])
        used = time.process_time() - start
        tested = ExperimentCLI(["test", *common, "--ckpt_path", "last"])
        result = {
            "steps": steps,
            "seconds_per_step": per_step,
            "seconds_of_fit": used,
            "resumed": len(fit.clock.times) < steps,
            "untrained": scores(untrained.trainer),
            "trained": scores(tested.trainer),
        }
        path.write_text(json.dumps(result, indent=1))
    return dict(json.loads(path.read_text()))


def cell(values: Sequence[float], decimals: int) -> str:
    """Mean and, of several values, their sample standard deviation."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean(values):.{decimals}f}{spread}"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The rows of all models as Markdown, trained and untrained."""
    header = ["", "seeds", "steps", "CPU s/step", *COLUMNS]
    lines = [header, ["---"] * len(header)]
    for model, runs in results.items():
        for state in ("trained", "untrained") if runs else ():
            steps = [f"{runs[0]['steps']:,}", f"{runs[0]['seconds_per_step']:.3f}"]
            lines.append(
                [
                    model if state == "trained" else "untrained",
                    str(len(runs)),
                    *(steps if state == "trained" else ["0", ""]),
                    *(
                        cell([run[state][name] for run in runs if name in run[state]], decimals)
                        for name, decimals in COLUMNS.values()
                    ),
                ]
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Measures, trains, scores, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, help="all of those data by default")
    parser.add_argument("--data", choices=[OWN_DATA, *OTHER_DATA], default=OWN_DATA)
    parser.add_argument("--seconds", type=float, default=180.0, help="of one core for each training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/side_by_side"))
    parser.add_argument("--print", action="store_true", help="only print the table of what is finished")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.root.mkdir(parents=True, exist_ok=True)
    models = options.models or list(OTHER_DATA.get(options.data, MODELS))
    results: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
    for seed in options.seeds:
        for model in models:
            finished = (
                options.root / f"{run_name(model, options.data, seed, options.seconds)}.json"
            ).is_file()
            if finished or not options.print:
                results[model].append(train(model, options.data, seed, options.root, options.seconds))
    print(table(results))


if __name__ == "__main__":
    main()
