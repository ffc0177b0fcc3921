"""Writes what a model says about pictures to disk, for `predict`."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import save_image

from data_modules.raw.pictures import centre_square
from lightning_genesis.callbacks import coco
from lightning_genesis.figures.drawing import SLOT_COLOURS, reconstruction_grid, write_picture
from lightning_genesis.models.pictures import place_back, segmentation_at
from lightning_genesis.scene import MaskKind, Scene
from lightning_genesis.storage.files import replacing

FOLDER = "predictions"
ROWS = 40
"""Pictures of one sheet."""
COCO = "coco.json"
KINDS: dict[MaskKind, str] = {"decoded": "", "attention": "_attention"}
"""Masks, and what they add to the names of files."""


@dataclass
class PredictionOptions:
    """What `predict` writes besides pictures.

    Args:
        arrays: for every picture an `arrays.npz`: soft masks, attention masks and latents of the model.
    """

    arrays: bool = False


class PredictionWriter(BasePredictionWriter):
    """Writes a folder for every picture, a sheet of all of them, and the segmentations for COCO's tools.

    `overview.png` has a row for every picture; `overview-2.png` and so on go on after `ROWS` of them.
    `coco.json` has an annotation for every slot. A picture's folder has its name, without suffix where that
    is enough to tell it from others, or its index. Its files are those of `write_scene`. Slots are numbered
    from 1. With several ranks, the sheets of the others have their rank in their names.

    Args:
        folder: the run's folder; all goes to `predictions/` in it.
        options: what to write.
    """

    def __init__(self, folder: Path, options: PredictionOptions | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.options = folder / FOLDER, options or PredictionOptions()
        self._reset()

    def _reset(self) -> None:
        self._folders: dict[str, str] = {}
        self._coco: list[dict[str, Any]] = []
        self._rows: list[tuple[str, Tensor, Scene]] = []
        self._sheets = 0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds a name for the folder of every picture."""
        self._reset()
        loaders: Any = trainer.predict_dataloaders
        dataset = (loaders[0] if isinstance(loaders, list) else loaders).dataset
        self._folders = folder_names(getattr(dataset, "names", []))

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes one batch."""
        indices, images = batch["index"].tolist(), batch["image"].detach().float().cpu()
        names = batch.get("name") or [f"{index:06d}" for index in indices]
        sizes = (
            batch["original_size"].tolist() if "original_size" in batch else [images.shape[2:]] * len(names)
        )
        scene = prediction.map(lambda tensor: tensor.detach().float().cpu())
        for position, (index, name, (height, width)) in enumerate(zip(indices, names, sizes, strict=True)):
            one = scene[position : position + 1]
            place = self._folders.get(name, name)
            ids = write_scene(self.folder / place, one, height, width, self.options.arrays)
            entry = {"id": index + 1, "file_name": name, "width": width, "height": height}
            self._coco.append({**entry, "annotations": [*coco.annotations(ids, index + 1)]})
            self._rows.append((place, images[position : position + 1], one))
            if len(self._rows) == ROWS:
                self._write_sheet(trainer.global_rank)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what is of all pictures, and says where everything is."""
        if self._rows:
            self._write_sheet(trainer.global_rank)
        found = [self._coco]
        if trainer.world_size > 1:
            found = [[]] * trainer.world_size
            torch.distributed.all_gather_object(found, self._coco)
        if not trainer.is_global_zero:
            return
        pictures = [picture for part in found for picture in part]
        contents = coco.whole(pictures, f"{type(pl_module).__name__}: a slot is an annotation")
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / COCO) as temporary:
            temporary.write_text(json.dumps(contents), encoding="utf-8")
        print(
            f"{len(contents['images'])} pictures in {self.folder}: a folder each, overview.png and {COCO}",
            flush=True,
        )

    def _write_sheet(self, rank: int) -> None:
        self._sheets += 1
        names, images, scenes = zip(*self._rows, strict=True)
        self._rows = []
        scene = joined(scenes)
        parts = [
            "overview",
            *([f"rank{rank}"] if rank else []),
            *([str(self._sheets)] if self._sheets > 1 else []),
        ]
        labels = [name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 3]}..." for name in names]
        picture = reconstruction_grid(torch.cat(images), scene, labels=labels)
        write_picture(self.folder / f"{'-'.join(parts)}.png", picture)


LONGEST_LABEL = 24
"""Characters of a picture's name beside its row."""


def joined(scenes: Sequence[Scene]) -> Scene:
    """What a sheet shows of scenes of the same model, as one batch."""

    def together(name: str) -> Tensor | None:
        parts = [getattr(scene, name) for scene in scenes]
        return None if parts[0] is None else torch.cat(parts)

    return Scene(
        torch.cat([scene.components for scene in scenes]),
        torch.cat([scene.log_masks for scene in scenes]),
        attention_log_masks=together("attention_log_masks"),
        decoded_log_masks=together("decoded_log_masks"),
    )


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """One flat folder's name for each path of a picture: without its suffix, where that is enough.

    `a/1.jpg` becomes `a_1`, or `a_1_jpg` where there is an `a_1.png` too. No two are equal, also where
    capitals do not count.
    """
    short = {name: "_".join(PurePosixPath(name).with_suffix("").parts) for name in names}
    counts = Counter(text.casefold() for text in short.values())
    found: dict[str, str] = {}
    # short names first: what is made longer must not take one of theirs
    taken = {text.casefold() for text in short.values() if counts[text.casefold()] == 1}
    for name in names:
        text = short[name]
        if counts[text.casefold()] > 1:
            text = base = f"{text}_{PurePosixPath(name).suffix.removeprefix('.')}"
            number = 2
            while text.casefold() in taken:
                text, number = f"{base}_{number}", number + 1
            taken.add(text.casefold())
        found[name] = text
    return found


def write_scene(
    folder: Path, scene: Scene, height: int, width: int, arrays: bool = False
) -> NDArray[np.uint8]:
    """Writes what a model says of one picture.

    At the size of the picture, with 0 outside the square that the model saw: `segmentation.png` and, where
    the model has such masks, `segmentation_attention.png`, of slots from 1 with a palette; `mask_K.png`,
    soft, by which the reconstruction is mixed (the decoded one, in MONet that of the attention). At the size
    of the model: `reconstruction.png`, `component_K.png`, and in `arrays.npz` the soft masks.

    Args:
        folder: where to.
        scene: of one picture, on the CPU.
        height: of the picture.
        width: of the picture.
        arrays: whether to write `arrays.npz`.

    Returns:
        slots of the picture's pixels by decoded masks, `[height, width]`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {
        kind: name
        for kind, name in KINDS.items()
        if kind == "decoded" or scene.attention_log_masks is not None
    }
    ids = {
        name: segmentation_at(scene.log_masks_of(kind), height, width)[0].numpy().astype(np.uint8)
        for kind, name in kinds.items()
    }
    for name, slots in ids.items():
        _write_ids(folder / f"segmentation{name}.png", slots)
    top, left, side = centre_square(height, width)
    borders = (left, width - side - left, top, height - side - top)
    save_image(scene.reconstruction[0], folder / "reconstruction.png")
    for slot, (component, mask) in enumerate(zip(scene.components[0], scene.masks[0], strict=True), start=1):
        save_image(component, folder / f"component_{slot}.png")
        placed = F.pad(place_back(mask[None], side), borders)[0]
        save_image(placed, folder / f"mask_{slot}.png")
    if arrays:
        contents: dict[str, Any] = {
            "square": np.array([top, left, side]),
            **{f"segmentation{name}": slots for name, slots in ids.items()},
            **{
                f"masks{name}": scene.log_masks_of(kind)[0, :, 0].exp().numpy()
                for kind, name in kinds.items()
            },
            **_latents(scene.latents),
        }
        with replacing(folder / "arrays.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **contents)
    return ids[""]


def _latents(latents: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {f"latents_{name}": values[0].numpy() for name, values in latents.items()}


def _write_ids(path: Path, ids: NDArray[np.uint8]) -> None:
    image = Image.fromarray(ids, mode="P")
    colours = [(0, 0, 0), *(SLOT_COLOURS[slot % len(SLOT_COLOURS)] for slot in range(255))]
    image.putpalette([value for colour in colours for value in colour])
    image.save(path)
