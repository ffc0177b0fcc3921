"""`compile`: what is left outside the compiled pieces, that they are compiled once, and that they are right.

Quick backends stand for the compiler, as what is traced, and how often, does not depend on it; the slow tests
of the models run the real one.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from benchmarks.counting import NO_KERNEL, _is_view
from lightning_genesis import models
from lightning_genesis.models import SceneModel
from lightning_genesis.models.pieces import compiled
from tests.ranks.tiny import NAMES, tiny

QUICK = ("GenesisV2",)


class Outside(TorchDispatchMode):
    """Counts kernels outside compiled pieces, of which `backend` makes each."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.pieces = 0
        self._inside = False
        self.backend = aot_autograd(fw_compiler=self._compile, bw_compiler=self._compile)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled code runs as it does without the mode."""
        return True

    def _compile(self, graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            self.pieces += 1
            self._inside = True
            try:
                return graph(*arguments)
            finally:
                self._inside = False

        return make_boxed_func(run)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not (self._inside or _is_view(func) or name in NO_KERNEL):
            self.kernels[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def compile_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What `torch.compile` is called with instead of a mode."""
    instead: dict[str, Any] = {}
    compiler = torch.compile

    def compile_quickly(function: Any = None, mode: str | None = None) -> Any:
        assert mode == "default"
        return compiler(function, **instead)

    monkeypatch.setattr(torch, "compile", compile_quickly)
    compiled.cache_clear()
    torch._dynamo.reset()
    yield instead
    compiled.cache_clear()
    torch._dynamo.reset()


def build(name: str, compile: str | None, **options: Any) -> SceneModel:
    torch.manual_seed(0)
    given = {**tiny(name).options, **options}
    model: SceneModel = getattr(models, name)(num_slots=3, image_size=32, compile=compile, **given)
    return model


def step(model: SceneModel, images: torch.Tensor) -> torch.Tensor:
    """Loss and gradients of a training step, with the same draws every time."""
    torch.manual_seed(1)
    model.zero_grad()
    loss = model.objective(model.loss_terms(model(images), images), num_dimensions=images[0].numel())
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(tiny("SRI").variants[1], marks=pytest.mark.slow),
        pytest.param(tiny("SRI").variants[2], marks=pytest.mark.slow),
    ],
)
def test_little_of_sri_is_left_outside(options: dict[str, Any], compile_with: dict[str, Any]) -> None:
    outside = Outside()
    compile_with["backend"] = outside.backend
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    eager, model = (build("SRI", mode, **options).train() for mode in (None, "default"))
    model.configure_model()
    torch.testing.assert_close(step(model, images), step(eager, images), rtol=1e-5, atol=0.0)
    for (name, found), expected in zip(model.named_parameters(), eager.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-2, msg=name)
    outside.pieces = 0
    with outside:
        step(model, images)
    # slots, terms and, with L_seg, the encoder's network, each forward and backward
    assert outside.pieces == (6 if model.hparams["segregation_loss"] else 4)
    assert sum(outside.kernels.values()) < 100


class Images(Dataset[dict[str, Any]]):
    """Images with masks; five of them, so that the last of the batches of two is another size."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 32, 32, generator=generator)
        return {"image": image, "index": index, "segmentation": (image[:1] * 3).to(torch.uint8)[0]}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_nothing_is_compiled_again(name: str, compile_with: dict[str, Any]) -> None:
    """Not by a validation between steps, a last batch of another size, a test, or sampling."""
    compile_with["backend"] = "eager"
    model = build(name, "default")
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        max_steps=6,
        accelerator="cpu",
        val_check_interval=1,
        num_sanity_val_steps=1,
        **dict.fromkeys(quiet, False),  # type: ignore[arg-type]
    )
    held_out = DataLoader(Images(), 2)
    counters = torch._dynamo.utils.counters
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        trainer.fit(model, DataLoader(Images(), 2, drop_last=True), held_out)
        pieces = counters["stats"]["unique_graphs"]
        trainer.test(model, held_out, verbose=False)
        if type(model).sample is not SceneModel.sample:
            model.sample(3)
            model.sample(2)
        model.segment(torch.rand(1, 3, 32, 32))
    assert pieces == {"SRI": 3, "EfficientMORL": 2}.get(name, 1)
    assert counters["stats"]["unique_graphs"] == pieces
    assert not counters["graph_break"]
