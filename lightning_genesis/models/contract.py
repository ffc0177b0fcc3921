"""What the base class and the model below it owe each other, said in one line where it is not kept."""

import inspect
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from lightning_genesis.errors import CheckpointError, ConfigurationError, ImageError
from lightning_genesis.scene import Scene, Terms

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Of `torch.compile`."""
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Those that record a step's kernels on a GPU and replay them."""
LINKED = ("num_slots", "image_size", "num_background")
"""What the data know and every model takes."""
RANGE_SLACK = 1e-3
"""How far outside [0, 1] a value may lie: filters that resize, and float16, are a little off."""


def constructor_arguments(module: nn.Module) -> dict[str, Any]:
    """What the constructor of an object was called with, defaults included, by name.

    Call it in the constructor of the base class: it looks through the frames of those below, of which each
    hands `**common` on. Where several have an argument, what reached the base class counts.
    """
    arguments: dict[str, Any] = {}
    frame = inspect.currentframe()
    frame = None if frame is None else frame.f_back
    while frame is not None and frame.f_code.co_name == "__init__":
        names, _, keywords, values = inspect.getargvalues(frame)
        if values.get(names[0] if names else "") is not module:
            break
        own = {name: values[name] for name in names[1:]}
        # what a constructor was not given by name it may hand on under other values
        arguments = {**own, **(values[keywords] if keywords else {}), **arguments}
        frame = frame.f_back
    return arguments


def check_plain(arguments: Mapping[str, Any], owner: str) -> None:
    """Refuses hyperparameters that a checkpoint could not hold without code.

    Raises:
        ConfigurationError: naming the first argument that is not made of numbers, text, lists and mappings.
    """
    for name, value in arguments.items():
        if not _is_plain(value):
            raise ConfigurationError(
                f"{owner}: argument {name} is a {type(value).__name__}; hyperparameters are numbers, text, "
                "None, lists and mappings of them, so that a checkpoint loads without running code"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Refuses a name that is none of those that an option has.

    Raises:
        ConfigurationError: naming the option, the value and the known ones.
    """
    if value not in known:
        raise ConfigurationError(f"{name}={value!r} is unknown: use {' or '.join(map(repr, known))}")


def check_sizes(**sizes: int | None) -> None:
    """Refuses sizes below 1, given by the names of their options; None is one that is not asked for.

    Raises:
        ConfigurationError: naming the option and the value.
    """
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigurationError(f"{name}={value} is too small: use at least 1")


def check_class(model: nn.Module, branches: tuple[str, ...]) -> None:
    """Refuses a class that has not said what its loss is made of.

    Raises:
        ConfigurationError: if it names no branches.
    """
    kind = type(model).__name__
    if not isinstance(branches, tuple) or not branches or not all(isinstance(name, str) for name in branches):
        raise ConfigurationError(
            f"{kind}: branches is {branches!r}, expected the names of the parts of its loss, as in "
            f'branches = ("{kind.lower()}",)'
        )


def check_images(images: Any, model: LightningModule) -> None:
    """Refuses what is no `[B, 3, H, W]` of floats in [0, 1] with the model's sides.

    While a model trains, or in a running Trainer, no value is looked at, so that nothing waits for a device:
    see `check_range`.

    Raises:
        ImageError: saying what was found and what to do.
    """
    kind, side = type(model).__name__, model.image_size
    expected = f"expected floats in [0, 1], [B, 3, {side}, {side}]"
    other = "model.segment and model.reconstruct take pictures, bytes and any size"
    if not isinstance(images, Tensor):
        raise ImageError(f"{kind}: a {type(images).__name__}, {expected}; {other}")
    if not images.is_floating_point():
        raise ImageError(f"{kind}: images of {_type(images)}, {expected}: images / 255; {other}")
    if images.dim() != 4 or images.shape[1:] != (3, side, side):
        raise ImageError(f"{kind}: images {list(images.shape)}, {expected}; {other}")
    running = model._trainer is not None and model._trainer.state.status == TrainerStatus.RUNNING
    if not (running or model.training):
        check_range(images, kind)


def check_range(images: Tensor, owner: str) -> None:
    """Refuses floats that are not in [0, 1]; the host waits for the device. NaN is left to the gate.

    Raises:
        ImageError: naming the lowest and the highest value.
    """
    if images.is_meta or isinstance(images, FakeTensor) or not images.numel():
        return  # there are no values
    lowest, highest = (float(value) for value in images.detach().aminmax())
    if lowest < -RANGE_SLACK or highest > 1.0 + RANGE_SLACK:
        what_to_do = "divide by 255" if lowest >= 0.0 and highest > 2.0 else "bring them there"
        raise ImageError(f"{owner}: images from {lowest:.4g} to {highest:.4g}, expected 0 to 1; {what_to_do}")


def check_scene(scene: Any, images: Tensor, model: nn.Module) -> None:
    """Compares a Scene's shapes with the contract; looks at no value, so nothing waits for a device.

    Raises:
        ConfigurationError: naming the first field that does not fit, what it is and what is expected.
    """
    kind = f"{type(model).__name__}.forward"
    if not isinstance(scene, Scene):
        raise ConfigurationError(
            f"{kind} gives a {type(scene).__name__}, expected a lightning_genesis.scene.Scene"
        )
    batch, _, height, width = images.shape
    if not isinstance(scene.components, Tensor) or scene.components.dim() != 5:
        raise ConfigurationError(
            f"{kind}: Scene.components is {_shape(scene.components)}, expected [B, K, 3, H, W]"
        )
    num_slots = scene.components.shape[1]
    expected = {
        "components": (batch, num_slots, 3, height, width),
        **dict.fromkeys(
            ("log_masks", "attention_log_masks", "decoded_log_masks"), (batch, num_slots, 1, height, width)
        ),
        "num_active": (batch,),
    }
    for name, shape in expected.items():
        value = getattr(scene, name)
        if value is None and name not in ("components", "log_masks"):
            continue
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            raise ConfigurationError(f"{kind}: Scene.{name} is {_shape(value)}, expected {list(shape)}")
    for name, value in scene.latents.items():
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != batch:
            raise ConfigurationError(
                f"{kind}: Scene.latents[{name!r}] is {_shape(value)}, expected [{batch}, ...]"
            )


def check_terms(terms: Any, branches: tuple[str, ...], images: Tensor, model: nn.Module) -> None:
    """Compares the terms of a loss with the contract, by names and shapes alone.

    Raises:
        ConfigurationError: naming the first branch or term that does not fit.
    """
    kind = f"{type(model).__name__}.loss_terms"
    if not isinstance(terms, Mapping) or tuple(terms) != branches:
        found = list(terms) if isinstance(terms, Mapping) else type(terms).__name__
        raise ConfigurationError(
            f"{kind} gives {found}, expected a Terms for each of {list(branches)}, in order"
        )
    shape = [len(images)]
    for branch, term in terms.items():
        if not isinstance(term, Terms):
            raise ConfigurationError(f"{kind}: {branch!r} is a {type(term).__name__}, expected a Terms")
        for name, value in {"nll": term.nll, **{f"kl[{key!r}]": kl for key, kl in term.kl.items()}}.items():
            if not isinstance(value, Tensor) or list(value.shape) != shape:
                raise ConfigurationError(
                    f"{kind}: {name} of {branch!r} is {_shape(value)}, expected {shape}, nats per image"
                )


def check_per_image(name: str, value: Any, images: Tensor, model: nn.Module) -> None:
    """Compares what a method gives for every image with the contract.

    Raises:
        ConfigurationError: if it is no `[B]`.
    """
    if not isinstance(value, Tensor) or list(value.shape) != [len(images)]:
        raise ConfigurationError(
            f"{type(model).__name__}.{name} gives {_shape(value)}, expected {[len(images)]}: one per image"
        )


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _shape(value: Any) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def check_compile(mode: object, model: Any) -> None:
    """Refuses what is no mode of `torch.compile`, or one that a model cannot do with.

    Args:
        mode: or None.
        model: the class.

    Raises:
        ConfigurationError: naming those that there are.
    """
    if mode is not None and mode not in COMPILE_MODES:
        raise ConfigurationError(f"compile={mode!r}: expected null or one of {', '.join(COMPILE_MODES)}")
    if mode in CUDA_GRAPHS and not model.replays:
        raise ConfigurationError(
            f"compile={mode!r}: {model.__name__} takes gradients inside its forward, which CUDA graphs "
            "cannot replay; use 'default'"
        )


def check_same_model(checkpoint: Mapping[str, Any], model: nn.Module) -> None:
    """Compares the class that a checkpoint names with that of a model.

    Raises:
        CheckpointError: if it is another.
    """
    found, expected = checkpoint.get("model_class"), type(model).__name__
    if found not in (None, expected):
        raise CheckpointError(f"the checkpoint holds a {found}, the configuration a {expected}")
