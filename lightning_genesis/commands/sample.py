"""`lightning-genesis sample MODEL --output DIR`: new scenes from the prior of a trained model.

MODEL is a run's folder, a .ckpt or a .safetensors. The same command gives the same scenes; a scene
depends on the seed and its number alone, not on how many are drawn.
"""

import io
import json
import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torchvision.utils import save_image

from lightning_genesis.commands.arguments import (
    CommandParser,
    add_model_options,
    add_prior_option,
    check_numbers,
    find_device,
    weights_path,
)
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.figures import generation_order, generation_steps, sweep
from lightning_genesis.figures.drawing import image_sheet, write_picture
from lightning_genesis.models import SceneModel
from lightning_genesis.runs.loading import load_model
from lightning_genesis.runs.priors import use_prior
from lightning_genesis.runs.run import find_file
from lightning_genesis.scene import IndexedNoise, Scene
from lightning_genesis.storage.files import open_regular, whole_folder

BATCH_SIZE = 32
"""Scenes at once; they do not depend on it."""
MOST_ON_A_SHEET = 256
MAX_LATENT_BYTES, MAX_HEADER_BYTES = 2**26, 1000
"""Of a file of scene variables, and of what it says of them, which NumPy evaluates."""
SHOWN = 32
"""Samples shown with the masks of their slots."""
STEPS_SHOWN = 4
"""Samples of which every step is shown."""
SWEEP_SHOWN = 8
"""Samples per setting, where there are several settings."""


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-genesis sample", description=__doc__)
    parser.add_argument("model", type=weights_path, help="a run's folder, .safetensors, .ckpt or zoo:NAME")
    add_model_options(parser)
    add_prior_option(parser)
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--num_images", type=int, help="how many per setting; 64 by default")
    parser.add_argument(
        "--temperature", type=float, nargs="+", default=[1.0], help="factors on every latent's scale"
    )
    parser.add_argument(
        "--num_slots",
        type=int,
        nargs="+",
        default=[None],
        help="numbers of slots; the model's own by default",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument(
        "--scene_latent", type=Path, help="a .npy of scene variables [S] or [B, S], for models that have one"
    )
    parser.add_argument("--images", action="store_true", help="write every sample as a PNG of its own, too")
    parser.add_argument("--latents", action="store_true", help="write the latents as .safetensors, too")
    parser.add_argument("--device", default=None, help="such as cpu or cuda:1; a GPU if there is one")
    return parser


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        CheckpointError: if the checkpoint is not there or damaged.
        ConfigurationError: if an option is wrong, the model has no prior, or the output is there already.
    """
    options = _parser().parse_args(list(args))
    _check(options)
    file = find_file(options.model, options.checkpoint)
    model = load_model(options.model, options.checkpoint, options.model_class)
    model = model.to(find_device(options.device, "sample"))
    if options.prior is not None:
        use_prior(model, options.model, options.prior, file)
    scene_latent = None
    if options.scene_latent is not None:
        scene_latent = read_scene_latent(options.scene_latent, model, options.num_images)
        options.num_images = len(scene_latent) if options.num_images is None else options.num_images
        scene_latent = scene_latent.expand(options.num_images, -1)
    options.num_images = options.num_images or 64
    settings = {
        setting_name(temperature, num_slots): (temperature, num_slots)
        for temperature, num_slots in product(options.temperature, options.num_slots)
    }
    with whole_folder(options.output) as folder:
        shown = {}
        for name, (temperature, num_slots) in settings.items():
            place = folder if len(settings) == 1 else folder / name.replace(", ", "_").replace(" ", "_")
            shown[name] = _write_setting(model, file, place, options, temperature, num_slots, scene_latent)
        if len(settings) > 1:
            write_picture(folder / "sweep.png", sweep(shown))
    print(f"{file} -> {options.output}: {type(model).__name__}, seed {options.seed}")
    for path in sorted(options.output.rglob("*")):
        if path.is_dir() == (path.name == "images") and path.parent.name != "images":
            print(f"  {path}")


def _check(options: Namespace) -> None:
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise ConfigurationError(f"sample: {options.output} is there already; give another --output")
    check_numbers("sample", options, {"num_images": 1, "seed": 0, "temperature": 0, "num_slots": 1})


def setting_name(temperature: float, num_slots: int | None = None) -> str:
    """What a setting is called in pictures; with `_` for what separates words, in folders."""
    return f"temperature {temperature:g}" + ("" if num_slots is None else f", {num_slots} slots")


def _write_setting(
    model: SceneModel,
    file: Path,
    folder: Path,
    options: Namespace,
    temperature: float,
    num_slots: int | None,
    scene_latent: Tensor | None,
) -> Scene:
    """Writes all pictures of one setting; returns its first samples."""
    scenes: list[Scene] = []  # the first ones, which are shown slot by slot
    sheet: list[Tensor] = []
    latents: list[dict[str, Tensor]] = []
    batches = sample_batches(
        model,
        options.num_images,
        seed=options.seed,
        num_slots=num_slots,
        temperature=temperature,
        scene_latent=scene_latent,
    )
    if options.images:
        (folder / "images").mkdir(parents=True)
    count = 0
    for scene in (batch.to("cpu") for batch in batches):
        if count < SHOWN:
            scenes.append(scene)
        if count < MOST_ON_A_SHEET:
            sheet.append(scene.reconstruction)
        if options.latents:
            latents.append(scene.latents)
        if options.images:
            for number, image in enumerate(scene.reconstruction, start=count):
                save_image(image, folder / "images" / f"{number:06d}.png")
        count += len(scene.components)
    scene = join(scenes)[:SHOWN]
    write_picture(folder / "samples.png", image_sheet(torch.cat(sheet)[:MOST_ON_A_SHEET]))
    write_picture(folder / "order.png", generation_order(scene))
    write_picture(folder / "steps.png", generation_steps(scene[:STEPS_SHOWN]))
    if options.latents:
        told = {
            "model_class": type(model).__name__,
            "checkpoint": file.relative_to(options.model.parent).as_posix(),
            "seed": options.seed,
            "prior": options.prior,
            "temperature": temperature,
            "num_slots": scene.num_slots,
        }
        tensors = {name: torch.cat([batch[name] for batch in latents]) for name in latents[0]}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        save_file(tensors, folder / "latents.safetensors", {"lightning_genesis": json.dumps(told)})
    return scene[:SWEEP_SHOWN]


def read_scene_latent(path: Path, model: SceneModel, num_images: int | None) -> Tensor:
    """Scene variables from a `.npy` file, `[B, S]` or one for all, `[1, S]`.

    Args:
        path: the file; nothing in it is run.
        model: whose scene variable it is.
        num_images: how many images there will be, if that is known.

    Raises:
        ConfigurationError: if the model has no scene variable, or the file does not hold such ones.
    """
    if model.scene_dim is None:
        raise ConfigurationError(f"--scene_latent: a {type(model).__name__} has no scene variable")
    try:
        values = _read_array(path)
        latent = torch.from_numpy(np.atleast_2d(np.asarray(values, dtype=np.float32)))
    except Exception as error:  # for rubbish NumPy may raise anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConfigurationError(f"--scene_latent {path}: no readable .npy of numbers ({reason})") from error
    if latent.dim() != 2 or latent.shape[1] != model.scene_dim or not len(latent):
        shape, expected = list(values.shape), f"[{model.scene_dim}] or [num_images, {model.scene_dim}]"
        raise ConfigurationError(f"--scene_latent {path}: has shape {shape}, expected {expected}")
    if not latent.isfinite().all():
        raise ConfigurationError(f"--scene_latent {path}: has values that are not finite")
    if num_images is not None and len(latent) not in (1, num_images):
        raise ConfigurationError(
            f"--scene_latent {path}: holds {len(latent)} scene variables, but --num_images is {num_images}"
        )
    return latent


def _read_array(path: Path) -> NDArray[Any]:
    """The array of a `.npy`; nothing is read that the file does not hold.

    Raises:
        ValueError: if it is too large, or claims more than it holds.
    """
    with open_regular(path) as file:
        content = file.read(MAX_LATENT_BYTES + 1)
    if len(content) > MAX_LATENT_BYTES:
        raise ValueError(f"more than {MAX_LATENT_BYTES:,} bytes")
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    start = stream.tell()
    if int.from_bytes(content[start : start + (2 if version == (1, 0) else 4)], "little") > MAX_HEADER_BYTES:
        raise ValueError(f"a header of more than {MAX_HEADER_BYTES} bytes")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    held = len(content) - stream.tell()
    if math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"claims an array of shape {list(shape)}, holds {held:,} bytes")
    stream.seek(0)
    return np.load(stream, allow_pickle=False)  # type: ignore[no-any-return]


@torch.no_grad()
def sample_batches(
    model: SceneModel,
    num_images: int,
    *,
    seed: int = 0,
    num_slots: int | None = None,
    temperature: float = 1.0,
    scene_latent: Tensor | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Scene]:
    """Samples in batches. Sample `i` has noise `(seed, i)`, whatever the batch size.

    Args:
        model: in evaluation mode.
        num_images: how many.
        seed: of the noise.
        num_slots: slots of each; the model's own if None.
        temperature: factor on the scale of every latent.
        scene_latent: scene variables `[num_images, S]`; drawn if None.
        batch_size: at once.

    Raises:
        ConfigurationError: if the model has no prior to sample from, or not with so many slots.
    """
    device = next(model.parameters()).device
    for start in range(0, num_images, batch_size):
        numbers = range(start, min(start + batch_size, num_images))
        given: dict[str, Any] = {}
        if scene_latent is not None:
            given["scene_latent"] = scene_latent[numbers.start : numbers.stop].to(device)
        noise = IndexedNoise(seed, numbers)
        yield model.sample(len(numbers), num_slots, temperature, noise, **given)


def join(scenes: Sequence[Scene]) -> Scene:
    """Components and masks of several batches as one Scene."""
    components = torch.cat([scene.components for scene in scenes])
    return Scene(components, torch.cat([scene.log_masks for scene in scenes]))
