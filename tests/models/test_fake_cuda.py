"""Every model on a GPU that is not there: one device throughout, nothing read, little copied."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_genesis import models
from lightning_genesis.models import SceneModel
from lightning_genesis.scene import IndexedNoise
from tests.fake_cuda import Asked, fake_cuda, put_on
from tests.quick import few
from tests.ranks.tiny import NAMES, tiny

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="a build of torch without CUDA")
CASES = [(name, options) for name in NAMES for options in ({}, *tiny(name).variants, tiny(name).mixing)]
CASES = [case for i, case in enumerate(CASES) if case not in CASES[:i]]
# EfficientMORL takes a gradient inside its forward, for which autograd needs `benchmarks/fake_cuda`.
CASES = [case for case in CASES if case[0] != "EfficientMORL" and case[1].get("encoder") != "emorl"]


def build(name: str, options: Mapping[str, Any]) -> SceneModel:
    model = getattr(models, name)(num_slots=3, image_size=32, **{**tiny(name).options, **options})
    # the step that a Trainer would count
    model.__class__ = type(f"{name}WithoutTrainer", (type(model),), {"global_step": property(lambda self: 0)})
    segregation = getattr(model, "segregation", None)
    if segregation is not None:
        kind = type(segregation)
        segregation.__class__ = type(
            f"{kind.__name__}WithoutTrainer", (kind,), {"global_step": property(lambda self: 0)}
        )
    return model


@pytest.mark.parametrize(
    ("name", "options", "precision"),
    few(
        [(*case, precision) for case in CASES for precision in ("32", "bf16")],
        ("GenesisV2", {}, "32"),
        *((name, {}, "bf16") for name, options in CASES if not options),
    ),
)
def test_training(name: str, options: Mapping[str, Any], precision: str) -> None:
    """Network, terms and objective; a read of a value, or a mixture of devices, would raise."""
    model = build(name, options)
    with fake_cuda():
        put_on(model, "cuda").train()
        images = torch.rand(2, 3, 32, 32, device="cuda")
        for _ in range(2):  # constants come to the device in the first step
            with Asked() as asked, torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                terms = model.loss_terms(model(images), images)
                loss = model.objective(terms, num_dimensions=images[0].numel())
                model._watch(terms)
    assert loss.device.type == "cuda"
    assert loss.dtype == torch.float32
    assert loss.requires_grad
    assert sum(asked.kernels.values()) > 50
    assert not asked.to_device
    assert not asked.to_host
    assert not asked.on_host
    if precision == "bf16":
        # the network in bfloat16, and its weights there by one cast for all of them
        assert asked.flops[torch.bfloat16] > asked.flops[torch.float32]
        assert asked.kernels["_to_copy"] < 30


@pytest.mark.parametrize(
    "name", few([name for name in NAMES if name != "EfficientMORL"], "GenesisV2", "MONet", "SRI")
)
def test_evaluation_and_sampling(name: str) -> None:
    model = build(name, {})
    with fake_cuda(), torch.no_grad():
        put_on(model, "cuda").eval()
        images = torch.rand(2, 3, 32, 32, device="cuda")
        with Asked() as asked, torch.autocast("cuda", torch.bfloat16):
            scene = model(images, IndexedNoise(0, range(2)))
            found = [*model.score_own(scene, images).values(), scene.reconstruction, scene.segmentation()]
            found += [term.nll for term in model.loss_terms(scene, images).values()]
            elbo = model.elbo(scene, images)
            if elbo is not None:
                found += [elbo, model.log_weight(images, IndexedNoise(1, range(2)))]
            found.append(model.representation(scene))
            if type(model).sample is not SceneModel.sample:
                found.append(model.sample(3, temperature=0.5, noise=IndexedNoise(2, range(3))).components)
        assert {value.device.type for value in found} == {"cuda"}
    assert not asked.to_host


def test_an_lstm_over_known_inputs_counts_as_cudnns() -> None:
    lstm = torch.nn.LSTM(5, 4, batch_first=True)
    with fake_cuda():
        put_on(lstm, "cuda")
        with Asked() as asked:
            lstm(torch.rand(2, 3, 5, device="cuda"))
    assert asked.kernels["cudnn_lstm"] == 1
    assert asked.unrolled["_thnn_fused_lstm_cell"] == 3
    assert asked.most_kernels == sum(asked.kernels.values()) - 1 + sum(asked.unrolled.values())
    assert sum(asked.flops.values()) == 2 * 2 * 3 * 4 * 4 * (5 + 4)


def test_counting_an_lstm_leaves_its_gradients() -> None:
    lstm, inputs = torch.nn.LSTM(5, 4, batch_first=True), torch.rand(2, 3, 5, requires_grad=True)
    found = []
    for context in (nullcontext(), Asked()):
        with context:
            loss = lstm(inputs)[0].square().sum()
            found.append(torch.autograd.grad(loss, [inputs, *lstm.parameters()]))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler builds what autograd asks a driver for")
@pytest.mark.parametrize("options", [[], ["--evaluation"]])
def test_gradients_too_where_a_driver_is_imitated(options: list[str], tmp_path: Path) -> None:
    """EfficientMORL, which takes a gradient inside its forward; training has a backward here."""
    root = Path(__file__).parents[2]
    command = [str(root / "benchmarks" / "fake_cuda" / "run"), "EMORL", *options]
    sizes = ["--num-slots", "3", "--image-size", "32", "--batch-size", "2"]
    environment = {**os.environ, "PY": sys.executable, "FAKE_CUDA": str(tmp_path)}
    result = subprocess.run([*command, *sizes], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    cells = [cell.strip() for cell in result.stdout.splitlines()[-1].strip("|").split("|")]
    assert cells[0] == "EMORL"
    assert int(cells[1].split()[0]) > 100
    if not options:
        assert cells[-1] == "1, 0"  # the gate's report goes to the host, without a wait
