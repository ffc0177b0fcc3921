"""GENESIS and GENESIS-V2 with a scene variable: the baselines of SRI's Table 4, never published as code.

Emami, He, Ranka, Rangarajan: "Towards Improving the Generation Quality of Autoregressive Slot VAEs", 2024,
Section 5.4: "adding a scene-level variable to GEN and GENv2, leaving all else with these models the same".
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.autoregressive_prior import AutoregressivePrior
from lightning_genesis.layers.scene_encoder import SceneEncoder, SequenceEncoder, SetEncoder, scene_to_sample
from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.contract import check_sizes
from lightning_genesis.models.genesis import Genesis
from lightning_genesis.models.genesis_v2 import GenesisV2
from lightning_genesis.models.sri import scene_kl
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Noise, Scene, Terms


class SceneVariable(SceneModel):
    """What a scene variable s adds to a model: `q(s | z)`, its KL, and a slot prior that starts from s.

    Mixed into a model with `slot_prior` and `_sample`.
    """

    scene_encoder: SceneEncoder
    slot_prior: AutoregressivePrior | None
    detach_slots: bool

    def _add_scene_variable(self, latent_dim: int, options: dict[str, Any]) -> None:
        """Puts the parts in; `options` are the constructor's own, which join the hyperparameters."""
        # GENESIS with one slot has no mask latents
        if not self.hparams["autoregressive_prior"] or not latent_dim:
            raise ConfigurationError(
                "the slots have no autoregressive prior for the scene variable to condition: use "
                "autoregressive_prior=True and at least 2 slots"
            )
        if self.hparams.get("flexible_slots"):
            raise ConfigurationError("flexible_slots=True: the scene variable is inferred from all slots")
        self.save_hyperparameters(options, logger=False)
        self.scene_dim, self.detach_slots = options["scene_dim"], options["detach_slots"]
        if options.get("scene_encoder", "set") == "set":
            self.scene_encoder = SetEncoder(latent_dim, self.scene_dim, num_layers=options["num_set_layers"])
        else:
            self.scene_encoder = SequenceEncoder(latent_dim, self.scene_dim)
        self.slot_prior = AutoregressivePrior(latent_dim, self.hparams["prior_dim"], self.scene_dim)

    def _slots(self, sample: Tensor) -> Tensor:
        """What of the latents `[B, K, D]` the scene variable is inferred from and conditions."""
        return sample

    def _with_scene(self, latents: dict[str, Tensor], noise: Noise | None) -> dict[str, Tensor]:
        slots = self._slots(latents["sample"]).float()
        with full_precision(slots):
            return latents | self.scene_encoder.infer(slots.detach() if self.detach_slots else slots, noise)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """As without the scene variable, whose noise `[B, S]` is drawn last.

        The latents of the Scene have `scene_mean`, `scene_scale` and `scene_sample` too, each `[B, S]`.
        """
        scene = super().forward(images, noise)
        return replace(scene, latents=self._with_scene(scene.latents, noise))

    def encode(self, images: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Posteriors of the slots and of the scene, by the names of `forward`."""
        return self._with_scene(super().encode(images, noise), noise)  # type: ignore[misc]

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """The terms of the model, and the KL `scene`."""
        (terms,) = super().loss_terms(scene, images).values()
        return {self.branches[0]: replace(terms, kl={**terms.kl, "scene": scene_kl(scene.latents)})}

    def elbo(self, scene: Scene, images: Tensor) -> Tensor:
        """Evidence lower bound, nats per image `[B]`."""
        elbo = super().elbo(scene, images)
        assert elbo is not None
        return elbo - scene_kl(scene.latents)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
        scene_latent: Tensor | None = None,
    ) -> Scene:
        """Scenes drawn from the prior: the scene variable, then slot after slot; see `SRI.sample`."""
        like = self.scene_encoder.mean.weight
        scene_latent = scene_to_sample(scene_latent, num_images, self.scene_dim, temperature, noise, like)
        return self._sample(num_images, num_slots, temperature, noise, scene_latent)  # type: ignore[operator]


class SceneGenesisV2(SceneVariable, GenesisV2):
    """GENESIS-V2 whose slot prior is conditioned on a scene variable; the slots stay in random order.

    The scene is inferred as in SRI, by its permutation-invariant encoder. Not said in the paper, chosen here:
    the prior keeps GENESIS-V2's `tanh` and `sigmoid` and now has a learned first slot; the KL of the slots
    stays one sample's estimate, unless `analytic_kl`; that of the scene is exact.

    Args:
        num_slots: number of slots K.
        image_size: side of the images.
        scene_dim: size of the scene variable S.
        num_set_layers: blocks of the scene encoder L.
        detach_slots: let no gradient through the scene encoder to the slots, as in SRI.
        options: of `GenesisV2`.

    Raises:
        ConfigurationError: if a size or option does not fit the architecture.
    """

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        scene_dim: int = 128,
        num_set_layers: int = 3,
        detach_slots: bool = True,
        **options: Any,
    ) -> None:
        own = {"scene_dim": scene_dim, "num_set_layers": num_set_layers, "detach_slots": detach_slots}
        check_sizes(scene_dim=scene_dim, num_set_layers=num_set_layers)
        super().__init__(num_slots, image_size, **options)
        self._add_scene_variable(self.latent_dim, own)

    def prior(self, latents: Tensor, scene_latent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and scale of `p(z_k | z_1 ... z_{k-1}, s)`, each `[B, K, D]`, given s `[B, S]`."""
        assert self.slot_prior is not None
        return self.slot_prior(latents, scene_latent)

    def log_weight(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """`log p(x, z, s) - log q(z, s | x)` at one sample, nats per image `[B]`."""
        scene = self(images, noise)
        kl = self._latent_kl(scene, analytic=False) + scene_kl(scene.latents, analytic=False)
        return -self._nll(scene, images, normalized=True) - kl

    def _prior_of(self, scene: Scene) -> tuple[Tensor, Tensor]:
        return self.prior(scene.latents["sample"], scene.latents["scene_sample"])


class SceneGenesis(SceneVariable, Genesis):
    """GENESIS whose prior over mask latents is conditioned on a scene variable.

    "We encode the ordered sequence of slots obtained by sampling from its ordered slot posterior." Chosen
    here: the slots are the mask latents, which alone are autoregressive; the encoder is SRI's, which
    does not see the order (`scene_encoder: sequence` is an LSTM that does); the prior keeps GENESIS's `tanh`
    and `sigmoid` and now has a learned first slot.

    Args:
        num_slots: number of slots K, at least 2.
        image_size: side of the images.
        scene_dim: size of the scene variable S.
        num_set_layers: blocks of the scene encoder L, if it is a set encoder.
        scene_encoder: "set", or "sequence".
        detach_slots: let no gradient through the scene encoder to the slots, as in SRI.
        options: of `Genesis`.

    Raises:
        ConfigurationError: if a size or option does not fit the architecture.
    """

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        scene_dim: int = 128,
        num_set_layers: int = 3,
        scene_encoder: Literal["set", "sequence"] = "set",
        detach_slots: bool = True,
        **options: Any,
    ) -> None:
        own = {
            "scene_dim": scene_dim,
            "num_set_layers": num_set_layers,
            "scene_encoder": scene_encoder,
            "detach_slots": detach_slots,
        }
        check_sizes(scene_dim=scene_dim, num_set_layers=num_set_layers)
        if scene_encoder not in ("set", "sequence"):
            raise ConfigurationError(f"scene_encoder={scene_encoder!r} is unknown: use 'set' or 'sequence'")
        super().__init__(num_slots, image_size, **options)
        self._add_scene_variable(self.network.dims[0], own)

    def prior(self, latents: Tensor, scene_latent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and scale of the priors at latents `[B, K, M + C]`, given s `[B, S]`."""
        return self._prior(latents, scene_latent)

    def log_weight(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """`log p(x, z, s) - log q(z, s | x)` at one sample, nats per image `[B]`."""
        scene = self(images, noise)
        kl = self._total_kl(scene, analytic=False) + scene_kl(scene.latents, analytic=False)
        return -self._nll(scene, images) - kl

    def _slots(self, sample: Tensor) -> Tensor:
        return sample[:, :, : self.network.dims[0]]

    def _prior_of(self, scene: Scene) -> tuple[Tensor, Tensor]:
        return self.prior(scene.latents["sample"], scene.latents["scene_sample"])
