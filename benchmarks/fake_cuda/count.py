"""Counts what a training step asks of a GPU, or a test batch and sampling, on tensors without data.

No GPU is needed, and no time is measured.

Forward, terms, objective, gate, backward, GECO and fused Adam of every model, in float32 and under bfloat16
autocast: kernels, bytes that they read and write (no fusion, no cache), operations of convolutions and
products, copies between host and device. It fails where devices mix or a value is read. An LSTM over known
inputs is cuDNN's: one operation forward and one backward; in brackets stand the kernels with it unrolled, as
its bytes and FLOPs are. Not seen: what a library launches for one operation; waits for events
(`tests/callbacks/test_no_wait.py`); time. Started by `benchmarks/fake_cuda/run`, which preloads what torch's
autograd asks of a driver.
"""

import argparse
import ctypes
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.utils.clip_grad as clip_grad

from benchmarks.all_models import MODELS
from benchmarks.train_step import at_step_0
from lightning_genesis.callbacks.finite_gate import FiniteGate
from lightning_genesis.models import SceneModel
from tests.fake_cuda import Asked, fake_cuda, put_on

SHIM = ctypes.CDLL(os.path.join(os.environ["FAKE_CUDA"], "shim.so"))


class Event:
    """Stands for `torch.cuda.Event`."""

    def record(self) -> None:
        """Does nothing."""


@contextmanager
def device_there() -> Iterator[None]:
    """While autograd asks how many devices there are, there are some; nobody else may see them."""
    SHIM.shim_set(100)
    try:
        yield
    finally:
        SHIM.shim_set(0)


def count(make: Callable[[int, int], SceneModel], arguments: argparse.Namespace, bfloat16: bool) -> Asked:
    """Counts of the second step; the first one sets things up."""
    model = make(arguments.num_slots, arguments.image_size)
    at_step_0(model)
    with fake_cuda():
        put_on(model, "cuda").train()
        size = arguments.image_size
        images = torch.rand(arguments.batch_size, 3, size, size, device="cuda")
        found: Any = model.configure_optimizers()
        optimizer = found["optimizer"] if isinstance(found, dict) else found
        gate = FiniteGate()
        trainer: Any = SimpleNamespace(global_step=0, precision_plugin=SimpleNamespace())
        for _ in range(2):
            with Asked() as asked:
                optimizer.zero_grad()
                with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16):
                    with device_there():
                        scene = model(images)
                    terms = model.loss_terms(scene, images)
                    loss = model.objective(terms, num_dimensions=images[0].numel())
                    model._watch(terms)
                gate.on_before_backward(trainer, model, loss)
                with device_there():
                    loss.backward()
                gate.on_before_optimizer_step(trainer, model, optimizer)
                model.objective.update(model.finite)
                optimizer.step()
    return asked


def evaluate(make: Callable[..., SceneModel], arguments: argparse.Namespace) -> dict[str, Asked]:
    """Counts of a test batch, scores and all, and of sampling as many images, under bfloat16 autocast."""
    model = make(arguments.num_slots, arguments.image_size)
    at_step_0(model)
    found: dict[str, Asked] = {}
    with fake_cuda(), torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        put_on(model, "cuda").eval()
        size, indices = arguments.image_size, range(arguments.batch_size)
        batch = {
            "image": torch.rand(len(indices), 3, size, size, device="cuda"),
            "segmentation": torch.zeros(len(indices), size, size, dtype=torch.uint8, device="cuda"),
            "index": indices,
        }
        for _ in range(2):  # the first batch sets things up
            with Asked() as found["test"], device_there():
                model.test_step(batch, 0)
        if type(model).sample is not SceneModel.sample:
            with Asked() as found["sample"]:
                model.sample(len(indices))
    return found


def kernels_of(asked: Asked) -> str:
    """Their number, and in brackets that with every LSTM unrolled, where there is one."""
    kernels = sum(asked.kernels.values())
    return f"{kernels} ({asked.most_kernels})" if asked.unrolled else str(kernels)


def main() -> None:
    """Counts and prints a line for every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all if none is named")
    parser.add_argument("--num-slots", type=int, default=7)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--kernels", action="store_true", help="list the most frequent kernels too")
    parser.add_argument("--evaluation", action="store_true", help="a test batch and sampling instead")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.cuda.Event = Event  # type: ignore[assignment,misc]
    clip_grad._has_foreach_support = lambda *_: True  # type: ignore[attr-defined]
    if arguments.evaluation:
        print("| model | kernels of a test batch | GB | copies to host | of sampling | GB |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name in arguments.models or MODELS:
            cells = [name]
            for what, asked in evaluate(MODELS[name], arguments).items():
                cells += [kernels_of(asked), f"{asked.bytes / 1e9:.2f}"]
                cells += [str(sum(asked.to_host.values()))] if what == "test" else []
            print(f"| {' | '.join(cells)} |", flush=True)
        return
    print("| model | kernels float32 | bfloat16 | GB float32 | bfloat16 | GFLOP | copies to host, device |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models or MODELS:
        single, half = (count(MODELS[name], arguments, bfloat16) for bfloat16 in (False, True))
        kernels = [kernels_of(asked) for asked in (single, half)]
        flops = sum(single.flops.values()) / 1e9
        copies = sum(half.to_host.values()), sum(half.to_device.values())
        print(
            f"| {name} | {kernels[0]} | {kernels[1]} | {single.bytes / 1e9:.1f} | {half.bytes / 1e9:.1f} "
            f"| {flops:.0f} | {copies[0]}, {copies[1]} |",
            flush=True,
        )
        if arguments.kernels:
            print(dict(single.kernels.most_common(20)), flush=True)


if __name__ == "__main__":
    main()
