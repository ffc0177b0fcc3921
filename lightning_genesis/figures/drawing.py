"""Grids of what a model sees: pure functions from a Scene to a picture, float `[3, H, W]` in [0, 1]."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid, save_image

from lightning_genesis.scene import MaskKind, Scene
from lightning_genesis.storage.files import replacing

SLOT_COLOURS: tuple[tuple[int, int, int], ...] = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
    (0, 128, 128),
    (220, 190, 255),
    (170, 110, 40),
    (255, 250, 200),
    (128, 0, 0),
    (170, 255, 195),
    (128, 128, 0),
    (255, 215, 180),
    (0, 0, 128),
    (128, 128, 128),
)
"""Colour of each slot, the same in every picture; slots beyond these start over."""
BACKGROUND_COLOUR, IGNORED_COLOUR = (58, 62, 68), (255, 255, 255)
"""Of true segmentations: a neutral grey, which no slot has, and white where there is no truth."""
IGNORED = 255
PADDING, LINES = 2, 0.6
"""Width of the lines between cells, and their grey: visible between white cells and between black ones."""
EMPTY = 0.5
"""Grey of a slot's picture where its mask is empty."""
SIDE = 96
"""Images are enlarged to at least this many pixels, so that a heading fits above each."""
FONT_SIZE = 12
LINE = FONT_SIZE + 4
"""Height of a line of text."""


# ---------------------------------------------------------------- grids


def reconstruction_grid(
    images: Tensor,
    scene: Scene,
    truth: Tensor | None = None,
    labels: Sequence[str] = (),
    num_background: int = 1,
) -> Tensor:
    """One row per image: input, reconstruction, segmentation (decoded, then attention), masked components.

    Args:
        images: `[B, 3, H, W]`.
        scene: of the same images.
        truth: instance ids `[B, H', W']`, shown after the reconstruction where given.
        labels: texts to the left of the rows, such as scores.
        num_background: ids of `truth` below it are background.
    """
    columns = {"input": images, "reconstruction": scene.reconstruction}
    if truth is not None:
        columns["truth"] = colour_truth(resize_ids(truth, images), num_background)
    columns["masks"] = colour_slots(scene.segmentation())
    if scene.attention_log_masks is not None:
        columns["attention"] = colour_slots(scene.segmentation("attention"))
    columns |= slot_columns(masked_components(scene))
    return tile([*columns.values()], [*columns], labels, scene.num_slots)


def sample_grid(scene: Scene, labels: Sequence[str] = ()) -> Tensor:
    """One row per sample: the image, its segmentation, masked components; `labels` as above."""
    columns = {"sample": scene.reconstruction, "masks": colour_slots(scene.segmentation())}
    columns |= slot_columns(masked_components(scene))
    return tile([*columns.values()], [*columns], labels, scene.num_slots)


def mask_grid(images: Tensor, scene: Scene, kind: MaskKind = "attention") -> Tensor:
    """One row per image: input, segmentation, and the mask of every slot in grey (GENESIS-V2, Figure 9)."""
    columns = {"input": images, "segmentation": colour_slots(scene.segmentation(kind))}
    columns |= slot_columns(grey(scene.log_masks_of(kind).exp()))
    return tile([*columns.values()], [*columns], num_slots=scene.num_slots)


def image_sheet(images: Tensor, num_columns: int | None = None) -> Tensor:
    """Images `[B, 3, H, W]` row by row, by default in a square (GENESIS, Figure 6)."""
    num_columns = num_columns or int(np.ceil(len(images) ** 0.5))
    return tile(wrap(images.unsqueeze(1), num_columns))


# ---------------------------------------------------------------- what is in the cells


def colour_slots(ids: Tensor) -> Tensor:
    """Slot ids `[..., H, W]` in the slots' colours, `[..., 3, H, W]`."""
    return _palette(ids.device)[ids % len(SLOT_COLOURS)].movedim(-1, -3)


def colour_truth(ids: Tensor, num_background: int = 1) -> Tensor:
    """True instance ids `[..., H, W]` in colours, `[..., 3, H, W]`: background grey, ignored pixels white.

    The colours of objects have nothing to do with those of slots, though they are of the same list.
    """
    own = [BACKGROUND_COLOUR] * num_background
    own += [SLOT_COLOURS[number % len(SLOT_COLOURS)] for number in range(IGNORED - num_background)]
    colours = torch.tensor([*own, IGNORED_COLOUR], dtype=torch.float32, device=ids.device) / 255.0
    return colours[ids.long()].movedim(-1, -3)


def colour_masks(scene: Scene) -> Tensor:
    """Colours of the slots mixed by their masks, `[B, 3, H, W]` (SRI, Figure 4)."""
    slots = torch.arange(scene.num_slots, device=scene.log_masks.device)
    colours = _palette(slots.device)[slots % len(SLOT_COLOURS)]  # [K, 3]
    return (scene.masks * colours[None, :, :, None, None]).sum(dim=1)


def masked_components(scene: Scene) -> Tensor:
    """Every slot's component where its mask is high, on grey elsewhere, `[B, K, 3, H, W]`.

    Grey, as scenes are often black or white somewhere: what is no slot's must not look like an object.
    """
    return scene.masks * scene.components + EMPTY * (1.0 - scene.masks)


def image_so_far(scene: Scene) -> Tensor:
    """The image made by the first slots, white where they leave it open, `[B, K, 3, H, W]`."""
    masks = scene.masks
    return (masks * scene.components).cumsum(dim=1) + (1.0 - masks.cumsum(dim=1))


def grey(masks: Tensor) -> Tensor:
    """Masks `[B, K, 1, H, W]` from black to white, `[B, K, 3, H, W]`."""
    return masks.expand(-1, -1, 3, -1, -1)


def slot_columns(pictures: Tensor) -> dict[str, Tensor]:
    """One column per slot of `[B, K, 3, H, W]`, headed by its number from 1."""
    return {f"slot {slot}": column for slot, column in enumerate(pictures.unbind(dim=1), start=1)}


def resize_ids(ids: Tensor, like: Tensor) -> Tensor:
    """Instance ids `[B, H', W']` at the size of images `[B, 3, H, W]`."""
    return F.interpolate(ids.unsqueeze(1).float(), like.shape[-2:], mode="nearest").squeeze(1).long()


@cache
def _palette(device: torch.device) -> Tensor:
    return torch.tensor(SLOT_COLOURS, dtype=torch.float32, device=device) / 255.0


# ---------------------------------------------------------------- layout


def tile(
    columns: Sequence[Tensor],
    headings: Sequence[str] = (),
    labels: Sequence[str] = (),
    num_slots: int = 0,
) -> Tensor:
    """Columns of images `[B, 3, H, W]` side by side; small images are enlarged without smoothing.

    Args:
        columns: of the same shape.
        headings: texts above the columns.
        labels: texts to the left of the rows; may have several lines.
        num_slots: the last columns, which are the slots; their headings get the slots' colours.
    """
    table = torch.stack([column.detach().float().cpu() for column in columns], dim=1)  # [B, columns, 3, H, W]
    scale = -(-SIDE // table.shape[-1])
    cells = F.interpolate(table.clamp(0.0, 1.0).flatten(0, 1), scale_factor=float(scale), mode="nearest")
    height, width = (side + PADDING for side in cells.shape[2:])
    if len(cells) == 1:  # which make_grid would leave without a border
        picture = F.pad(cells[0], (PADDING,) * 4, value=LINES)
    else:
        picture = make_grid(cells, nrow=len(columns), padding=PADDING, pad_value=LINES)
    if headings:
        texts = [text(heading, width, LINE) for heading in headings]
        for slot in range(num_slots):
            texts[slot - num_slots] = _on_colour(texts[slot - num_slots], slot)
        strip = F.pad(torch.cat(texts, dim=2), (0, PADDING), value=1.0)
        picture = torch.cat([strip, picture], dim=1)
    if labels:
        margin = max(text_width(label) for label in labels) + 2 * PADDING
        texts = [text(label, margin, height) for label in labels]
        strip = F.pad(torch.cat(texts, dim=1), (0, 0, LINE if headings else 0, PADDING), value=1.0)
        picture = torch.cat([strip, picture], dim=2)
    return picture


def wrap(groups: Tensor, num_columns: int) -> list[Tensor]:
    """Columns for `tile` that show groups of images `[B, G, 3, H, W]` from left to right, then below.

    The images of a group stand one below the other; what is left over in the last row is white.
    """
    num_rows = -(-len(groups) // num_columns)
    blank = groups.new_ones((num_rows * num_columns - len(groups), *groups.shape[1:]))
    table = torch.cat([groups, blank]).unflatten(0, (num_rows, num_columns))
    return [*table.transpose(0, 1).flatten(1, 2)]


def stack(pictures: Sequence[Tensor], gap: int = LINE) -> Tensor:
    """Pictures `[3, H, W]` one below the other, white to their right and between them."""
    width = max(picture.shape[2] for picture in pictures)
    last = len(pictures) - 1
    padded = [
        F.pad(picture, (0, width - picture.shape[2], 0, gap if number < last else 0), value=1.0)
        for number, picture in enumerate(pictures)
    ]
    return torch.cat(padded, dim=1)


def titled(title: str, picture: Tensor) -> Tensor:
    """A picture with a line of text above its left edge."""
    line = F.pad(text(title, text_width(title), LINE), (PADDING, 0), value=1.0)
    return stack([line, picture], gap=0)


def slot_legend(num_slots: int) -> Tensor:
    """Colour and number of every slot, in a line (SRI, Figure 7)."""
    boxes = [_on_colour(text(str(slot + 1), 2 * LINE, LINE), slot) for slot in range(num_slots)]
    return torch.cat([text("slot", text_width("slot") + 4 * PADDING, LINE), *boxes], dim=2)


def _on_colour(words: Tensor, slot: int) -> Tensor:
    """Text on the colour of a slot: black where that is light, else white."""
    colour = _palette(words.device)[slot % len(SLOT_COLOURS)].view(3, 1, 1)
    return colour * words if colour.mean() > 0.45 else 1.0 - (1.0 - colour) * words


# ---------------------------------------------------------------- text


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def text_width(string: str) -> int:
    """Width of the longest line of a text, in pixels."""
    return int(max(_font().getlength(line) for line in string.split("\n"))) + 2 * PADDING


def text(string: str, width: int, height: int) -> Tensor:
    """Text in black in the middle of a white picture, `[3, height, width]`; lines end with a newline."""
    image = Image.new("L", (width, height), 255)
    middle = (width / 2, height / 2)
    ImageDraw.Draw(image).multiline_text(middle, string, 0, _font(), anchor="mm", align="center")
    return (torch.from_numpy(np.asarray(image, dtype=np.float32)) / 255.0).expand(3, -1, -1)


# ---------------------------------------------------------------- files


def write_picture(path: str | Path, picture: Tensor) -> None:
    """Writes a picture `[3, H, W]` as PNG, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_image(picture, temporary, format="png")
