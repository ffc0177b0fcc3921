"""What is known about each of the authors' models: how it is told, and how its names become ours."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from torch import Tensor

from lightning_genesis.classes import constructor_parameters
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.interop import options as known
from lightning_genesis.models.base import SceneModel


@dataclass(frozen=True)
class OfficialModel:
    """What is known about one of the authors' models."""

    model: str
    """Name of our class in `lightning_genesis.models`."""
    mark: str
    """A pattern of official keys that the models before it in `OFFICIAL` have not."""
    options: Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Any]]
    """Options of our class, by parameters and flags."""
    key: str
    """`module:function` in `lightning_genesis.interop` that gives our name of an official key."""
    convert: str | None = None
    """The same for a whole state, where names alone do not do."""
    family: str | None = None
    """Another name that it is asked for by."""
    scheduled: bool = False
    """The learning rate in the file is that of a step, not the highest one."""
    geco: Mapping[str, float] = field(default_factory=dict)
    """Published options of its GECO that are not ours by default."""
    idle: tuple[str, ...] = ()
    """Parts, by our names, that a model without a use for them lacks here; a file may have them."""
    asked: tuple[str, ...] = ()
    """Options besides K and image size that no parameter tells and that have no safe default."""

    def rename(self, key: str) -> str:
        """Our name of an official key; KeyError if there is no such parameter."""
        return function_named(self.key)(key)

    @property
    def kind(self) -> type[SceneModel]:
        """Our class."""
        return getattr(import_module("lightning_genesis.models"), self.model)

    def build(self, options: Mapping[str, Any]) -> SceneModel:
        """A model of ours.

        Raises:
            ConfigurationError: if our class has no such option, or not this value of it.
        """
        names = constructor_parameters(self.kind)
        for name in options:
            if name not in names:
                close = get_close_matches(name, names, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise ConfigurationError(f"{self.model} has no option {name!r}{hint}")
        return self.kind(**options)


def function_named(name: str) -> Callable[..., Any]:
    """The function that `module:function` names in `lightning_genesis.interop`."""
    module, _, function = name.partition(":")
    return getattr(import_module(f"lightning_genesis.interop.{module}"), function)


OFFICIAL = {
    "genesisv2": OfficialModel(
        "GenesisV2",
        r"(seg_head|feat_head|decoder_module)\.",
        known.genesis_v2_options,
        "genesis_v2:genesis_v2_key",
    ),
    "monet": OfficialModel(
        "MONet",
        r"att_process\.core\.(down|up|mlp|final_conv)\.",
        known.monet_options,
        "monet:monet_key",
        idle=("network.attention.",),  # with one slot
    ),
    "genesis-s": OfficialModel("Genesis", r"decoder\.seq\.", known.genesis_options, "genesis:genesis_key"),
    "genesis": OfficialModel("Genesis", r"comp_vae\.", known.genesis_options, "genesis:genesis_key"),
    "bd-vae": OfficialModel("VAE", r"vae\.p_x_nn\.1\.seq\.", known.vae_options, "vae:vae_key"),
    "dc-vae": OfficialModel("VAE", r"vae\.p_x_nn\.\d\.conv\.", known.vae_options, "vae:vae_key"),
    "sri": OfficialModel(
        "SRI",
        r"(genesisv2|scene_encoder|prior_lstm\.scene_encoder|posterior_lstm)\.",
        known.sri_options,
        "sri:sri_key",
        geco={"step_size": 1e-6},
    ),
    "slot-attention": OfficialModel(
        "SlotAttention",
        r"slot_attention/",
        known.slot_attention_options,
        "slot_attention:tensorflow_key",
        convert="slot_attention:tensorflow_state",
    ),
    "emorl": OfficialModel(
        "EfficientMORL",
        r"(hvae_networks|refinenet)\.",
        known.emorl_options,
        "emorl:emorl_key",
        convert="emorl:emorl_state",
        scheduled=True,
        idle=("network.layer_prior.",),  # with one layer
        asked=("num_layers",),
    ),
    "slot-attention-emorl": OfficialModel(
        "SlotAttention",
        r"(init_slots$|encoder_pt_[12]\.)",
        known.emorl_slot_attention_options,
        "slot_attention:slot_attention_key",
        family="slot-attention",
        scheduled=True,
    ),
}
"""The authors' models by the name that the command has for them."""


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """Name in `OFFICIAL` of the model that a state dict belongs to, None if it is none of them."""
    components = state.get("comp_vae.decoder_module.seq.9.bias")
    if components is not None and len(components.flatten()) == 4:
        return "monet"  # with a mask logit, which tells it from a GENESIS where K is 1
    for name, official in OFFICIAL.items():
        if any(re.match(official.mark, key) for key in state):
            return name
    return None
