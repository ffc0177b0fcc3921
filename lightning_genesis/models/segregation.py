"""What SRI asks of the model that takes an image apart, and the models of ours that do."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, Protocol, cast

from torch import Tensor, nn

from lightning_genesis.classes import constructor_parameters
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.emorl import EfficientMORL
from lightning_genesis.models.gaussian_slot_attention import GaussianSlotAttention
from lightning_genesis.models.genesis_v2 import GenesisV2
from lightning_genesis.scene import Noise, Scene, Terms

EncoderName = Literal["genesis_v2", "slot_attention", "emorl"]
ENCODERS: dict[str, Callable[..., SceneModel]] = {
    "genesis_v2": GenesisV2,
    "slot_attention": GaussianSlotAttention,
    "emorl": EfficientMORL,
}
"""Models that can take an image apart for SRI; each is a `SegregationModel`."""
COMMON = tuple(constructor_parameters(SceneModel))
"""Options of every model; the whole one's count."""


class SlotDecoder(Protocol):
    """Decodes every slot on its own; the slots share the pixels by a softmax over their logits."""

    def decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Components `[B, K, 3, H, W]` and log-masks `[B, K, 1, H, W]` of latents `[B, K, D]`."""
        ...


class SegregationModel(Protocol):
    """What SRI asks of the model that takes an image apart: any `SceneModel` whose slots are Gaussian.

    A model becomes an encoder of SRI by an entry in `ENCODERS`, name to class. SRI builds it as
    `Class(num_slots, image_size, **options)`, where `options` are `encoder_options` and, where the class has
    such arguments, SRI's own `likelihood`, `std`, `normalized_likelihood` and `compile`, and
    `autoregressive_prior=False`. It is a part of SRI under the name `segregation`, without an objective and
    metrics of its own; its `branches` come before SRI's in the objective, renamed to "segregation" (or
    "segregation_<name>", if there are several).
    """

    latent_dim: int
    """Size D of a slot's latent."""
    branches: tuple[str, ...]
    replays: bool
    """Whether it takes no gradient inside its forward, so that it can be compiled as a part of SRI."""

    def __call__(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """L_seg's own decoding; `latents` has `mean`, `scale` and `sample`, each `[B, K, D]`.

        SRI detaches these three itself, and puts `attention_log_masks`, where there are some, into its order.
        """
        ...

    def encode(self, images: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """The same `mean`, `scale` and `sample` without decoding, for SRI without L_seg (SRI-SA*)."""
        ...

    def decode(self, latents: Tensor) -> Scene:
        """Scene of latents `[B, K, D]`, any K, by the model's own decoder, which SRI may share."""
        ...

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """L_seg of a scene that came out of the model, by branch."""
        ...

    def make_decoder(self) -> nn.Module:
        """A new decoder like the model's own, freshly initialised: a `SlotDecoder`."""
        ...

    def configure_model(self) -> None:
        """Compiles the network, if the model was built so."""
        ...


def segregation_branches(branches: tuple[str, ...]) -> tuple[str, ...]:
    """Names, in SRI, of the branches of the model that takes an image apart."""
    if len(branches) == 1:
        return ("segregation",)
    return tuple(f"segregation_{branch}" for branch in branches)


def build_segregation(
    encoder: str, num_slots: int, image_size: int, options: Mapping[str, Any], shared: Mapping[str, Any]
) -> Any:
    """The encoder as a part of SRI: without an objective and metrics."""
    kind = ENCODERS[encoder]
    known = constructor_parameters(cast(type, kind))
    fixed = (*COMMON, "autoregressive_prior")
    for name in options:
        if name in fixed:
            raise ConfigurationError(
                f"encoder_options.{name} would be ignored: that of the whole model counts"
            )
        if name not in known:
            close = get_close_matches(name, set(known) - set(fixed), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigurationError(f"encoder_options.{name}: {encoder} has no such option{hint}")
    if options.get("flexible_slots"):
        raise ConfigurationError("encoder_options.flexible_slots=True: SRI orders a fixed number of slots")
    if options.get("mask_consistency_start", "start") != "start":
        raise ConfigurationError(
            "encoder_options.mask_consistency_start: the encoder in SRI has no goal of its own; use 'start'"
        )
    given = {name: value for name, value in shared.items() if name in known}
    segregation = kind(num_slots=num_slots, image_size=image_size, **{**given, **options})
    for part in ("objective", "scores"):
        delattr(segregation, part)
    return segregation
