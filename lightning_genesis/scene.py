"""The contracts between models, metrics and pictures: `Scene`, `Terms` and `Noise`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

MaskKind = Literal["decoded", "attention"]


@dataclass(frozen=True)
class Scene:
    """What a model says about a batch of images, whatever its inside.

    `K` slots explain an image as a mixture: slot `k` shows `components[:, k]` where its mask is high.
    """

    components: Tensor
    """RGB mean of every slot, in the range of the images, not clamped, `[B, K, 3, H, W]`."""
    log_masks: Tensor
    """Mixing log-probabilities of the likelihood, normalised over slots, `[B, K, 1, H, W]`."""
    attention_log_masks: Tensor | None = None
    """Masks of the inference network where it has its own, `[B, K, 1, H, W]`."""
    latents: dict[str, Tensor] = field(default_factory=dict)
    """The model's own statistics and samples, by name, each `[B, ...]`."""
    num_active: Tensor | None = None
    """Number of slots in use per image, `[B]`, where a model infers it; they are the first ones."""
    auxiliary: dict[str, "Scene"] = field(default_factory=dict)
    """Other decodings of the same batch, by name. The Scene itself is the one scored and shown."""
    decoded_log_masks: Tensor | None = None
    """Masks of the decoder where the likelihood mixes by others (MONet), `[B, K, 1, H, W]`."""

    @property
    def num_slots(self) -> int:
        """Number of slots `K`."""
        return self.components.shape[1]

    @property
    def masks(self) -> Tensor:
        """Mixing probabilities, `[B, K, 1, H, W]`."""
        return self.log_masks.exp()

    @property
    def reconstruction(self) -> Tensor:
        """Mean of the mixture, `[B, 3, H, W]`."""
        return (self.masks * self.components).sum(dim=1)

    @property
    def slot_latents(self) -> Tensor | None:
        """What stands for each slot, a sample where the model has a posterior, `[B, K, D]`."""
        return self.latents.get("sample", self.latents.get("slots"))

    def segmentation(self, kind: MaskKind = "decoded") -> Tensor:
        """Slot of the largest mask per pixel (the first one on ties), int64 `[B, H, W]`.

        Raises:
            ValueError: if `kind` is "attention" and the model has no masks of that kind.
        """
        return self.log_masks_of(kind).squeeze(2).argmax(dim=1)

    def log_masks_of(self, kind: MaskKind) -> Tensor:
        """Log-masks of the decoder or of the inference network, `[B, K, 1, H, W]`.

        Raises:
            ValueError: if `kind` is "attention" and the model has no masks of that kind.
        """
        if kind == "decoded":
            return self.log_masks if self.decoded_log_masks is None else self.decoded_log_masks
        if self.attention_log_masks is None:
            raise ValueError("this scene has no attention masks; use kind='decoded'")
        return self.attention_log_masks

    def map(self, function: Callable[[Tensor], Tensor]) -> "Scene":
        """The same scene with `function` applied to every tensor in it."""

        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, Scene):
                return value.map(function)
            if isinstance(value, dict):
                return {name: apply(item) for name, item in value.items()}
            return value

        return replace(self, **{entry.name: apply(getattr(self, entry.name)) for entry in fields(self)})

    def to(self, device: torch.device | str) -> "Scene":
        """The same scene on another device; Lightning moves predictions with it."""
        return self.map(lambda tensor: tensor.to(device))

    def clone(self) -> "Scene":
        """A detached copy that outlives its step (CUDA graphs overwrite their outputs)."""
        return self.map(lambda tensor: tensor.detach().clone())

    def __getitem__(self, images: slice) -> "Scene":
        """The scene of some of the images, as in `scene[:8]`."""
        return self.map(lambda tensor: tensor[images])


@dataclass(frozen=True)
class Terms:
    """The terms of one branch of an objective, per image, in nats."""

    nll: Tensor
    """Negative log-likelihood summed over pixels and channels, `[B]` (a reconstruction loss for
    models without a likelihood)."""
    kl: dict[str, Tensor]
    """Divergences by name, each `[B]`; may be empty."""
    weight: float = 1.0
    """Weight of the branch in the objective."""
    steps: tuple["Terms", ...] = ()
    """Earlier steps of an iterative inference, each with its own weight. They add to the loss; constraints
    and reports see the last step alone, which is this one."""

    @property
    def total_kl(self) -> Tensor:
        """Sum of the divergences, `[B]`."""
        return torch.stack([*self.kl.values()]).sum(dim=0) if self.kl else torch.zeros_like(self.nll)


class Noise(Protocol):
    """Where a model's random draws come from. None stands for torch's own generator.

    The first axis of every draw is the batch, so that a source can keep one stream per image.
    """

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal numbers of `shape` with the device and type of `like`."""
        ...

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Numbers uniform in [0, 1) of `shape` with the device and type of `like`."""
        ...


class IndexedNoise:
    """A stream of noise per image, fixed by `(seed, index)`.

    Results depend on neither the batch size nor the rank that an image lands on, and torch's global
    generators are left alone.

    Args:
        seed: the same for all images.
        index: position of each image in its split, `[B]`.
    """

    def __init__(self, seed: int, index: Tensor | Sequence[int]) -> None:
        positions = index.tolist() if isinstance(index, Tensor) else list(index)
        self.generators = [np.random.default_rng((seed, position)) for position in positions]

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """One draw of `shape[1:]` from every image's stream."""
        return self._draw(lambda stream: stream.standard_normal(shape[1:], dtype=np.float32), shape, like)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """One draw of `shape[1:]` from every image's stream."""
        return self._draw(lambda stream: stream.random(shape[1:], dtype=np.float32), shape, like)

    def _draw(
        self, draw: Callable[[np.random.Generator], np.ndarray], shape: Sequence[int], like: Tensor
    ) -> Tensor:
        if shape[0] != len(self.generators):
            raise ValueError(f"noise for {len(self.generators)} images was asked for {shape[0]}")
        numbers = np.stack([draw(stream) for stream in self.generators])
        return torch.from_numpy(numbers).to(device=like.device, dtype=like.dtype)


def draw_normal(noise: Noise | None, shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal numbers from `noise`, or from torch's own generator where it is None."""
    if noise is None:
        return torch.randn(shape, device=like.device, dtype=like.dtype)
    return noise.normal(shape, like)


def draw_gaussian(noise: Noise | None, mean: Tensor, scale: Tensor) -> Tensor:
    """A reparameterised draw of a Gaussian, of the shape of `mean`."""
    return torch.addcmul(mean, scale, draw_normal(noise, mean.shape, mean))


def draw_uniform(noise: Noise | None, shape: Sequence[int], like: Tensor) -> Tensor:
    """Numbers uniform in [0, 1) from `noise`, or from torch's own generator where it is None."""
    if noise is None:
        return torch.rand(shape, device=like.device, dtype=like.dtype)
    return noise.uniform(shape, like)
