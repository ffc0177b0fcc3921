"""Priors that were fitted to a run's slots, and the slots that they were fitted to.

```
RUN/priors/
  slots/SPLIT-COUNT.safetensors   the split, encoded once
  NAME/config.json                kind, sizes, weights of the model, how it was fitted, scores
  NAME/prior.safetensors
```
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_genesis.errors import CheckpointError, ConfigurationError, NonFiniteError
from lightning_genesis.models import SceneModel
from lightning_genesis.models.restore import few_tensors
from lightning_genesis.priors import PRIORS, SetPrior, attach_prior
from lightning_genesis.priors.encoding import MEAN, SAMPLE, SCALE
from lightning_genesis.storage.files import replacing, sha256_of, whole_folder
from lightning_genesis.storage.finite import not_finite
from lightning_genesis.storage.json_file import read_json

FOLDER = "priors"
SLOTS = "slots"
"""Folder of the encoded splits; no prior may have this name."""
CONFIG, WEIGHTS = "config.json", "prior.safetensors"
FORMAT = 1
_LARGEST_CONFIG = 1_000_000


def check_name(option: str, name: str) -> None:
    """Refuses a prior's name that is no plain name of a folder.

    Raises:
        ConfigurationError: if it is not made of letters, digits, `_`, `-` and `.`, or is taken.
    """
    if re.fullmatch(r"\w[\w.-]*", name) is None or name == SLOTS:
        raise ConfigurationError(
            f"{option} {name!r}: expected letters, digits, _, - and ., and another name than {SLOTS!r}"
        )


# ---------------------------------------------------------------- slots


def read_slots(path: Path, about: dict[str, Any]) -> dict[str, Tensor] | None:
    """Encoded slots; None if there are none about exactly this.

    Raises:
        CheckpointError: if the file is not readable.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("about", "null"))
        found = load_file(path) if told == about else None
        if found is not None:
            shapes = {(value.dtype, value.dim(), value.shape) for value in found.values()}
            names = found.keys() == {SAMPLE} or found.keys() == {SAMPLE, MEAN, SCALE}
            expected = (torch.float32, 3, about["num_images"])
            if not names or [(kind, dim, shape[0]) for kind, dim, shape in shapes] != [expected]:
                raise ValueError("its tensors are not slots")
        return found
    except Exception as error:  # what a reader raises for rubbish is not documented
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: no readable slots ({reason}); remove it to encode again") from error


def write_slots(path: Path, slots: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes encoded slots, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(
            {name: value.contiguous() for name, value in slots.items()},
            temporary,
            {"about": json.dumps(about)},
        )


# ---------------------------------------------------------------- priors


def write_prior(folder: Path, prior: SetPrior, about: dict[str, Any]) -> None:
    """Writes a prior as a folder of its own, which appears when all is in it.

    Args:
        folder: RUN/priors/NAME, which is not there yet.
        prior: what to write.
        about: `model`, `slots`, `fit` and `scores`, plain data.

    Raises:
        ConfigurationError: if the folder is there.
        NonFiniteError: if the prior is not finite.
    """
    if found := _not_finite(prior):
        raise NonFiniteError(
            f"{folder}: the prior is not finite ({found}), and not written; use a smaller --learning_rate"
        )
    if folder.exists():
        raise ConfigurationError(f"{folder} is there already: give the prior another --name, or remove it")
    with whole_folder(folder) as partial:
        save_file({name: value.contiguous() for name, value in prior.state_dict().items()}, partial / WEIGHTS)
        contents = {
            "format": FORMAT,
            "kind": prior.kind,
            "settings": prior.settings,
            "sha256": sha256_of(partial / WEIGHTS),
            **about,
        }
        text = json.dumps(contents, indent=2, allow_nan=False)
        with replacing(partial / CONFIG) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def read_prior_config(folder: Path) -> dict[str, Any]:
    """What is said of a prior.

    Raises:
        ConfigurationError: if there is no such prior, or its file is not ours; names the key, what it is and
            what was expected.
    """
    path = folder / CONFIG
    if not path.is_file():
        there = sorted(place.parent.name for place in folder.parent.glob(f"*/{CONFIG}"))
        hint = f"there are {', '.join(there)}" if there else "there is none; `fit-prior` makes one"
        raise ConfigurationError(f"{folder.parent}: no prior {folder.name!r}; {hint}")
    contents = read_json(path, _LARGEST_CONFIG)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        found = contents.get("format") if isinstance(contents, dict) else type(contents).__name__
        raise ConfigurationError(f"{path}: `format` is {found!r}, expected {FORMAT}")
    kinds = {"kind": str, "settings": dict, "sha256": str, "model": dict, "slots": dict}
    for key, kind in kinds.items():
        if type(contents.get(key)) is not kind:
            raise ConfigurationError(f"{path}: `{key}` is {contents.get(key)!r}, expected {kind.__name__}")
    if contents["kind"] not in PRIORS:
        raise ConfigurationError(
            f"{path}: `kind` is {contents['kind']!r}, expected one of {', '.join(PRIORS)}"
        )
    return contents


def read_prior(folder: Path) -> SetPrior:
    """A prior from its folder, in evaluation mode on the CPU. No code in the files runs.

    Raises:
        ConfigurationError: if there is no such prior, or its configuration is not ours.
        CheckpointError: if its weights are damaged or do not fit.
    """
    config, path = read_prior_config(folder), folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if (found := sha256_of(path)) != config["sha256"]:
        raise CheckpointError(
            f"{path}: damaged: its SHA-256 is {found[:16]}..., expected {config['sha256'][:16]!r}..."
        )
    try:
        weights = load_file(path)
        # sizes that only a file claims take no memory, and little time
        with torch.device("meta"), few_tensors(len(weights)):
            prior = PRIORS[config["kind"]](**config["settings"])
        if _layout(prior.state_dict()) != _layout(weights):
            raise ValueError("names, shapes or types are those of other settings")
        prior.load_state_dict(weights, assign=True)
        if found := _not_finite(prior):
            raise ValueError(f"not finite: {found}")
    except Exception as error:  # what a reader or a constructor raises for rubbish is not documented
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{folder}: no prior that fits its settings ({reason})") from error
    return prior.requires_grad_(False).eval()


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (value.dtype, *value.shape) for name, value in tensors.items()}


def _not_finite(prior: SetPrior) -> str:
    return not_finite({"state_dict": prior.state_dict()}, {name for name, _ in prior.named_buffers()})


def use_prior(model: SceneModel, place: Path, name: str, weights: Path) -> dict[str, Any]:
    """Lets a model sample from a prior of its run.

    Args:
        model: as the weights have it.
        place: the run's folder, or a file of weights, whose priors lie beside it.
        name: of a prior of the run, or a prior's own folder.
        weights: file of the model's weights, to which the prior has to have been fitted.

    Returns:
        what results say of the prior: name, kind, SHA-256 and number of images.

    Raises:
        ConfigurationError: if there is no such prior, or it was fitted to other weights.
        CheckpointError: if it is damaged.
    """
    folder = Path(name)
    if not (folder / CONFIG).is_file():
        check_name("--prior", name)
        folder = (place.parent if place.is_file() else place) / FOLDER / name
    config = read_prior_config(folder)
    told = config["model"]
    if told.get("sha256") != (found := sha256_of(weights)):
        raise ConfigurationError(
            f"{folder}: was fitted to {told.get('path')} of step {told.get('step')}, whose SHA-256 is "
            f"{str(told.get('sha256'))[:12]}..., but {weights} has {found[:12]}...; fit it again"
        )
    attach_prior(model, read_prior(folder))
    images = config["slots"].get("num_images")
    return {"name": folder.name, "kind": config["kind"], "sha256": config["sha256"], "num_images": images}
