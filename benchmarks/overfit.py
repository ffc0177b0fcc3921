"""Every model learns 64 images by heart, on one CPU core: whether gradients reach everything, in minutes.

    OMP_NUM_THREADS=1 python benchmarks/overfit.py [--models MONet DC-VAE ...]

Prints the Markdown table of docs/results-in-detail.md. The images are the first 64 of the quickstart's Multi-
dSprites: one to three sprites of saturated colours on black, 32x32. Models are small, the KL weighs little,
learning rates are high: nothing here is a paper's setting. Errors are mean squared errors of the
reconstructions of the same 64 images, with posterior samples, as in `val/mse`: of the untrained model, of
the trained one, and of the best constant image, each image its own colour, which is what a model gets by
ignoring the sprites.
"""

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything
from torch.utils.data import DataLoader

from data_modules import MultiDSprites
from lightning_genesis.models import VAE, Genesis, GenesisV2, MONet, SceneModel, SlotAttention
from lightning_genesis.objectives import FixedBeta

NUM_IMAGES, NUM_SLOTS, SIDE = 64, 4, 32


@dataclass(frozen=True)
class Setting:
    """How one model is built and for how long it is trained."""

    kind: type[SceneModel]
    steps: int
    batch_size: int
    beta: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> SceneModel:
        """The model, untrained."""
        objective = None if self.beta is None else FixedBeta(beta=self.beta)
        build: Callable[..., SceneModel] = self.kind
        return build(num_slots=NUM_SLOTS, image_size=SIDE, objective=objective, **self.options)


# A sigmoid without normalisation learns black images first and stays there (docs/results-in-detail.md).
# One-sample KLs are noisy with few images per step. In a mixture a small σ makes each channel of dark and
# bright slots: good likelihood, bad mean.
LINEAR = {"component_activation": "linear"}
GENESIS = LINEAR | {"std": 0.7, "feature_dim": 12, "analytic_kl": True, "learning_rate": 2e-3}
MONET = LINEAR | {"std": 0.7, "feature_dim": 16, "analytic_kl": True, "learning_rate": 1e-3}
VAES = LINEAR | {"std": 0.1, "analytic_kl": True}
SETTINGS = {
    "GENESIS-V2": Setting(
        GenesisV2,
        steps=5500,
        batch_size=4,
        beta=1e-3,
        options=LINEAR
        | {
            "std": 0.1,
            "latent_dim": 32,
            "feature_dim": 16,
            "likelihood": "gaussian",
            "semi_convolutional": False,
            "autoregressive_prior": False,
            "coordinate_scale": 5.0,
            "posterior_bias": -3.0,
            "decoder_stages": 3,
            "decoder_norm": False,
            "learning_rate": 2e-3,
        },
    ),
    "GENESIS": Setting(Genesis, steps=800, batch_size=16, beta=2e-3, options=GENESIS),
    "GENESIS-S": Setting(
        Genesis, steps=800, batch_size=16, beta=2e-3, options=GENESIS | {"two_stage": False}
    ),
    "MONet": Setting(MONet, steps=1200, batch_size=8, beta=2e-3, options=MONET),
    "Slot Attention": Setting(
        SlotAttention,
        steps=2600,
        batch_size=4,
        options={
            "feature_dim": 32,
            "decoder_dim": 32,
            "mlp_dim": 64,
            "decoder_stages": 2,
            "warmup_steps": 100,
            "decay_steps": 0,
            "learning_rate": 1e-3,
        },
    ),
    "BD-VAE": Setting(VAE, steps=12_500, batch_size=4, beta=0.01, options=VAES | {"learning_rate": 1e-3}),
    "DC-VAE": Setting(
        VAE, steps=1200, batch_size=8, beta=0.1, options=VAES | {"decoder": "deconv", "learning_rate": 1e-3}
    ),
}


@dataclass(frozen=True)
class Result:
    """What came of one model. `ari_fg` is of the masks that are scored first, None without masks."""

    steps: int
    seconds: float
    constant: float
    untrained: float
    trained: float
    ari_fg: float | None
    ari_fg_attention: float | None

    @property
    def ratio(self) -> float:
        """How many times smaller the error has become."""
        return self.untrained / self.trained


def overfit(setting: Setting, root: str) -> Result:
    """Trains one model on its 64 images and scores it on them, before and after.

    Args:
        setting: of the model.
        root: folder for the images.
    """
    seed_everything(0)
    data = MultiDSprites(
        root=root,
        variant="unique",
        image_size=SIDE,
        num_slots=NUM_SLOTS,
        train_size=NUM_IMAGES,
        val_size=1,
        test_size=1,
        max_sprites=3,
        background="black",
        palette="saturated",
        batch_size=setting.batch_size,
    )
    data.prepare()
    data.setup("fit")
    images = DataLoader(data.dataset("train"), batch_size=NUM_IMAGES, collate_fn=lambda batch: batch)
    model = setting.build()

    def trainer(**options: Any) -> Trainer:
        return Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    def score() -> dict[str, float]:
        (values,) = trainer().validate(model, dataloaders=images, verbose=False)
        return dict(values)

    before = score()
    start = time.process_time()
    trainer(max_steps=setting.steps, max_epochs=-1, limit_val_batches=0, use_distributed_sampler=False).fit(
        model, datamodule=data
    )
    seconds = time.process_time() - start
    after = score()
    pixels = next(iter(images))["image"].double() / 255.0
    constant = (pixels - pixels.mean(dim=(2, 3), keepdim=True)).square().mean()
    return Result(
        setting.steps,
        seconds,
        float(constant),
        before["val/mse"],
        after["val/mse"],
        after.get("val/ari_fg"),
        after.get("val/ari_fg_attention"),
    )


def row(name: str, result: Result) -> str:
    """A row of the Markdown table."""
    scores = ["" if score is None else f"{score:.2f}" for score in (result.ari_fg, result.ari_fg_attention)]
    cells = [
        name,
        str(result.steps),
        f"{result.seconds:.0f}",
        f"{result.untrained:.4f}",
        f"{result.trained:.4f}",
        f"{result.ratio:.0f}",
        f"{result.constant / result.trained:.1f}",
        *scores,
    ]
    return f"| {' | '.join(cells)} |"


HEADER = """\
| | steps | CPU s | MSE untrained | trained | times smaller | than constant | ARI-FG | attention |
|---|---|---|---|---|---|---|---|---|"""


def main(args: Sequence[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--models", nargs="+", choices=[*SETTINGS], default=[*SETTINGS], help="which")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as root:
        for name in options.models:
            print(row(name, overfit(SETTINGS[name], root)), flush=True)


if __name__ == "__main__":
    main()
