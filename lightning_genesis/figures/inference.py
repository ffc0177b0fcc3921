"""Figures of inference: what a model makes of images it is shown."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_genesis.figures.drawing import (
    colour_masks,
    colour_slots,
    grey,
    image_so_far,
    masked_components,
    reconstruction_grid,
    sample_grid,
    slot_columns,
    slot_legend,
    stack,
    tile,
    titled,
)
from lightning_genesis.metrics import Convention, count_pixels
from lightning_genesis.metrics.adjusted_rand_index import score_adjusted_rand_index
from lightning_genesis.metrics.segmentation_covering import score_segmentation_covering
from lightning_genesis.scene import Scene


def decomposition_steps(images: Tensor, scene: Scene) -> Tensor:
    """How an image is taken apart, slot after slot (GENESIS, Figures 4 and 10 to 12).

    One block per image. Its rows: each slot's component where its mask is high; the mask; the attention mask,
    if the model has those too; the scope, which is what the (attention) masks of earlier slots leave of the
    image; and the image as far as it is explained by then. The scope is that of the stick breaking in
    GENESIS, GENESIS-V2 and MONet; slots of other models have no such order, and it is a sum all the same.

    Args:
        images: `[B, 3, H, W]`.
        scene: of the same images.
    """
    blank = torch.ones_like(images)
    attention = scene.attention_log_masks
    masks = scene.masks if attention is None else attention.exp()
    rows = {
        "component": (images, masked_components(scene)),
        "mask": (colour_slots(scene.segmentation()), grey(scene.masks)),
    }
    if attention is not None:
        rows["attention"] = (colour_slots(scene.segmentation("attention")), grey(masks))
    rows["scope"] = (blank, grey(1.0 - (masks.cumsum(dim=1) - masks)))
    rows["so far"] = (scene.reconstruction, image_so_far(scene))
    return steps("input", rows)


def steps(first: str, rows: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """One block per image with a column per slot.

    Args:
        first: heading of the first column.
        rows: by label, what stands in the first column `[B, 3, H, W]` and in the others `[B, K, 3, H, W]`.
    """
    whole = torch.stack([image for image, _ in rows.values()], dim=1)  # [B, rows, 3, H, W]
    parts = torch.stack([slots for _, slots in rows.values()], dim=1)  # [B, rows, K, 3, H, W]
    blocks = []
    for image, slots in zip(whole, parts, strict=True):
        columns = {first: image} | slot_columns(slots)
        blocks.append(tile([*columns.values()], [*columns], [*rows], slots.shape[1]))
    return stack(blocks)


def inference_seeds(images: Tensor, scenes: Mapping[str, Scene], labels: Sequence[str] = ()) -> Tensor:
    """The same images under several seeds (GENESIS-V2, Figures 13 and 15): objects may change their slots.

    Args:
        images: `[B, 3, H, W]`.
        scenes: of the same images, by the name of the seed.
        labels: texts to the left of the rows.
    """
    columns = {"input": images}
    for name, scene in scenes.items():
        columns |= {name: scene.reconstruction, f"{name}: masks": colour_slots(scene.segmentation())}
    grid = tile([*columns.values()], [*columns], labels)
    return stack([grid, slot_legend(max(scene.num_slots for scene in scenes.values()))])


def imagination_pairs(images: Tensor, scene: Scene) -> Tensor:
    """Reconstruction beside the rollout of the prior that gave the slots their order (SRI, Figure 15).

    Masks are soft: the colours of the slots mixed.

    Args:
        images: `[B, 3, H, W]`.
        scene: of the same images, with `auxiliary["imagination"]`.
    """
    imagination = scene.auxiliary["imagination"]
    columns = {
        "input": images,
        "reconstruction": scene.reconstruction,
        "its masks": colour_masks(scene),
        "imagination": imagination.reconstruction,
        "imagined masks": colour_masks(imagination),
    }
    grid = tile([*columns.values()], [*columns])
    return stack([grid, slot_legend(max(scene.num_slots, imagination.num_slots))])


def failure_cases(scene: Scene, values: Tensor, name: str, images: Tensor | None = None) -> Tensor:
    """Reconstructions or samples, each with the value that makes it a failure (SRI, Figure 8).

    Args:
        scene: the worst first.
        values: what they were chosen by, `[B]`.
        name: of the value, such as "ELBO".
        images: what was reconstructed, `[B, 3, H, W]`; None for samples.
    """
    labels = [f"{name}\n{value:.5g}" for value in values.tolist()]
    return sample_grid(scene, labels) if images is None else reconstruction_grid(images, scene, labels=labels)


def example_scores(
    scene: Scene, segmentation: Tensor, *, num_background: int = 1, convention: Convention = "genesis"
) -> dict[str, Tensor]:
    """ARI, SC and mSC over the foreground by decoded masks, by name, each `[B]` (GENESIS, Figures 12 and 13).

    Args:
        scene: of the images.
        segmentation: instance ids `[B, H', W']`.
        num_background: ids below it are background.
        convention: edge cases, a name in `metrics.CONVENTIONS`.
    """
    counts = count_pixels(
        scene.segmentation(), segmentation, num_slots=scene.num_slots, num_background=num_background
    )
    covering = partial(score_segmentation_covering, counts, foreground=True, convention=convention)
    return {
        "ARI-FG": score_adjusted_rand_index(counts, foreground=True, convention=convention),
        "SC-FG": covering(weighted=True),
        "mSC-FG": covering(weighted=False),
    }


def score_labels(scores: Mapping[str, Tensor]) -> list[str]:
    """One label per image, with a line for every score `[B]`."""
    rows = zip(*(values.tolist() for values in scores.values()), strict=True)
    # the 0 makes a rounded -0.00 positive
    return [
        "\n".join(f"{name} {round(value, 2) + 0.0:.2f}" for name, value in zip(scores, row, strict=True))
        for row in rows
    ]


def latent_traversal(
    decode: Callable[[Tensor], Scene],
    latents: Tensor,
    image: int = 0,
    num_dimensions: int = 2,
    num_values: int = 7,
) -> Tensor:
    """An image decoded again while one dimension of one slot's latent changes: two rows per slot.

    The dimensions are those of largest variance over the batch (active units: Burda et al., 2016), the same
    for all slots; each goes from the smallest to the largest value in the batch.

    Args:
        decode: Scene of latents `[B, K, D]`.
        latents: posterior means of a batch `[B, K, D]`.
        image: which of the batch.
        num_dimensions: rows per slot.
        num_values: columns.
    """
    num_slots, latent_dim = latents.shape[1:]
    flat = latents.flatten(0, 1)
    dimensions = flat.var(dim=0, correction=0).topk(min(num_dimensions, latent_dim)).indices.tolist()
    original = decode(latents[image : image + 1])
    labels, rows = [], []
    for slot in range(num_slots):
        for dimension in dimensions:
            varied = latents[image : image + 1].repeat(num_values, 1, 1)
            low, high = flat[:, dimension].aminmax()
            varied[:, slot, dimension] = (
                torch.linspace(0.0, 1.0, num_values, device=low.device) * (high - low) + low
            )
            labels.append(f"slot {slot + 1}\nz {dimension}")
            rows.append(decode(varied).reconstruction)
    shown = masked_components(original)[0].repeat_interleave(len(dimensions), dim=0)  # [rows, 3, H, W]
    columns = [original.reconstruction.expand_as(shown), shown, *torch.stack(rows, dim=1)]
    headings = ["image", "slot", "smallest", *[""] * (num_values - 2), "largest"]
    title = (
        "one dimension z of one slot's latent at a time, from its smallest to its largest value in the data"
    )
    return titled(title, tile(columns, headings, labels))
