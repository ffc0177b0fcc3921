"""What a training step of GENESIS-V2 asks of the machine, in counts that no machine changes."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.counting import Counts, count_operations
from lightning_genesis.callbacks.finite_gate import FiniteGate
from lightning_genesis.callbacks.geco import GECOCallback
from lightning_genesis.models import GenesisV2


def count_step(model: GenesisV2, batch_size: int) -> Counts:
    """Counts of forward, loss, backward and the objective's update."""
    images = torch.rand(batch_size, 3, model.image_size, model.image_size)
    model.train()
    with count_operations() as counts:
        terms = model.loss_terms(model(images), images)
        loss = model.objective(terms, num_dimensions=images[0].numel())
        loss.backward()
        model.objective.update()
    return counts


@pytest.fixture(scope="module")
def counts() -> Counts:
    return count_step(GenesisV2(7, 64), 2)


def test_counter_on_a_known_program() -> None:
    weight = torch.ones(4, 3, requires_grad=True)
    x = torch.ones(2, 3)
    with count_operations() as counts:
        y = x @ weight.t()  # mm; the transposition is a view
        y.relu().view(-1).unsqueeze(0).sum().backward()  # relu, sum | ones_like, threshold, mm
        mask = y > 0.0
        y[mask]
        mask.any().item()
        x.nonzero()
        bool(x[0, 0] == 1.0)
        x.tolist()
        y.detach().numpy()
    assert counts.kernels["mm"] == 2  # x needs no gradient
    assert counts.flops == 2 * (2 * 2 * 3 * 4)
    assert counts.kernels["relu"] == 1
    assert not {"t", "view", "unsqueeze", "detach", "expand", "select"} & set(counts.kernels)
    assert counts.syncs == {"index": 1, "_local_scalar_dense": 2, "nonzero": 1}
    assert counts.host_reads == {"tolist": 1, "numpy": 1}


def test_floating_point_operations(counts: Counts) -> None:
    """At most 350 GFLOP per step at batch 32; the per-slot formulation needs 565."""
    single = count_step(GenesisV2(7, 64), 1)
    assert counts.flops == 2 * single.flops
    assert 300e9 < 16 * counts.flops <= 350e9


def test_floating_point_operations_are_those_that_torch_counts(counts: Counts) -> None:
    model, images = GenesisV2(7, 64), torch.rand(2, 3, 64, 64)
    with FlopCounterMode(display=False) as counter:
        terms = model.loss_terms(model(images), images)
        model.objective(terms, num_dimensions=images[0].numel()).backward()
    assert counts.flops == counter.get_total_flops()


def test_kernels(counts: Counts) -> None:
    """At most 650 forward and backward; the per-slot formulation needs 3226."""
    assert 200 < counts.kernels.total() <= 650
    assert count_step(GenesisV2(7, 64), 4).kernels.total() == counts.kernels.total()


def test_slots_cost_kernels_only_where_they_must() -> None:
    """Seeds are found one after the other; everything else treats all slots at once."""
    narrow: dict[str, Any] = {"image_size": 32, "feature_dim": 8, "autoregressive_prior": False}
    few, many = (count_step(GenesisV2(k, **narrow), 1).kernels.total() for k in (5, 10))
    assert 0 < many - few <= 5 * 20


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel": "laplacian"},
        {"kernel": "epanechnikov"},
        {"semi_convolutional": False},
        {"autoregressive_prior": False},
        {"likelihood": "gaussian", "normalized_likelihood": False},
        {"mask_consistency": True},
        {"analytic_kl": True},
    ],
)
def test_nothing_waits_for_the_device(options: dict[str, Any]) -> None:
    counts = count_step(GenesisV2(4, 32, feature_dim=8, **options), 2)
    assert counts.kernels
    assert not counts.syncs
    assert not counts.host_reads


class Images(Dataset[dict[str, Tensor]]):
    """Random pictures."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator)
        return {"image": image, "index": torch.tensor(index)}


class Count(pl.Callback):
    """Counts everything between the ends of two steps."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.context, self.counts, self.running = count_operations(), Counts(), False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.first and not self.running:
            self.counts, self.running = self.context.__enter__(), True
        elif trainer.global_step == self.last and self.running:
            self.context.__exit__(None, None, None)
            self.running = False


def fit(count: Count, **trainer: Any) -> GenesisV2:
    torch.manual_seed(0)
    model = GenesisV2(3, 32, latent_dim=8, feature_dim=8)
    pl.Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[count],
        **trainer,
    ).fit(model, DataLoader(Images(), batch_size=2))
    return model


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}])
def test_nothing_waits_for_the_device_in_a_trainer(options: dict[str, Any]) -> None:
    count = Count(1, 4)
    model = fit(count, max_steps=5, logger=False, **options)
    assert {FiniteGate, GECOCallback} <= {type(x) for x in model.configure_callbacks()}
    assert count.counts.kernels["_fused_adam_"] == 3
    assert model.objective.step == 5
    assert not count.running
    assert not count.counts.syncs
    # The gate reads the previous step's flags from host memory, once per batch.
    assert set(count.counts.host_reads) == {"numpy"}


def test_logging_is_what_would_wait(tmp_path: Path) -> None:
    """The counter sees the reads of a logging step, so the test above can fail."""
    count = Count(1, 4)
    fit(count, max_steps=5, log_every_n_steps=2, logger=CSVLogger(tmp_path))
    assert count.counts.syncs["_local_scalar_dense"] > 0
    quiet = Count(1, 4)
    fit(quiet, max_steps=5, log_every_n_steps=5, logger=CSVLogger(tmp_path))
    assert not quiet.counts.syncs


@pytest.mark.gpu
def test_nothing_waits_for_a_gpu() -> None:
    model = GenesisV2(4, 32, feature_dim=8).to("cuda").train()
    images = torch.rand(2, 3, 32, 32, device="cuda")
    optimizer = model.configure_optimizers()
    for mode in ("default", "error"):  # the first step sets up libraries
        torch.cuda.set_sync_debug_mode(mode)
        try:
            optimizer.zero_grad()
            terms = model.loss_terms(model(images), images)
            model.objective(terms, num_dimensions=images[0].numel()).backward()
            optimizer.step()
            model.objective.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
