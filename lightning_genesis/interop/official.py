"""Models and checkpoints of ours out of the authors' checkpoints."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.__version__ import version as lightning_version
from torch import Tensor
from torch.optim import Optimizer

from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.interop.emorl import GECO_STATE
from lightning_genesis.interop.known_models import OFFICIAL, OfficialModel, function_named, recognise
from lightning_genesis.interop.options import dataset_defaults
from lightning_genesis.interop.reading import OfficialFile, number, read_flags, read_official
from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.emorl import EfficientMORL
from lightning_genesis.objectives import GECO, FixedBeta, SoftplusGECO
from lightning_genesis.optimization.optimizers import OPTIONS
from lightning_genesis.storage.checkpoint import check_model

SIZES = ("num_slots", "image_size")
NO_PARAMETERS = ("std",)
"""Official buffers that are options here."""
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "momentum_buffer")
"""What the state of an optimiser holds for every parameter, besides its step."""
SETTINGS = (
    "betas",
    "eps",
    "weight_decay",
    "amsgrad",
    "alpha",
    "centered",
    "momentum",
    "dampening",
    "nesterov",
)
"""What an optimiser's group holds besides learning rate and parameters."""


def load_official(
    source: str | Path | Mapping[str, Any] | OfficialFile,
    model: str | None = None,
    num_slots: int | None = None,
    image_size: int | None = None,
    flags: str | Path | Mapping[str, Any] | None = None,
    **options: Any,
) -> SceneModel:
    """A model of ours with the weights and the state of GECO of an official checkpoint.

    Options that the parameters tell are taken from them, others from the flags, and what is given here
    counts before both. The number of slots K of a GENESIS-V2 is in neither if its flags say -1 and no
    dataset's name; it has to be given then.

    A file's β is the one of the last loss, while its error average has moved on: the update that is missing
    is made up for, so β here is the one of the next loss.

    Args:
        source: an official checkpoint file, its contents, or a bare state dict.
        model: name in `OFFICIAL`; by its parameters if None.
        num_slots: number of slots K.
        image_size: side of the images.
        flags: the `flags.json` of the official run, or its contents.
        options: of our model.

    Returns:
        the model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: if the file is damaged, of another model, or lacks, adds or reshapes parameters.
        ConfigurationError: if an option is missing or unknown.
    """
    file = source if isinstance(source, OfficialFile) else read_official(source)
    official = find_official(file, model)
    sizes = zip(SIZES, (num_slots, image_size), strict=True)
    options |= {name: value for name, value in sizes if value is not None}
    settings = _settings(file, official, {} if flags is None else read_flags(flags), options)
    built = official.build(settings)
    ours = built.state_dict()
    idle = tuple(part for part in official.idle if not any(name.startswith(part) for name in ours))
    state = {name: value for name, value in _state(file, official).items() if not name.startswith(idle)}
    check_model({"model_class": official.model, "state_dict": state}, built, file.path)
    built.load_state_dict(state, strict=False)  # the objective's state comes next
    _set_objective(built, file)
    return built.eval()


def import_official(
    source: str | Path | Mapping[str, Any] | OfficialFile, model: str | None = None, **arguments: Any
) -> dict[str, Any]:
    """The contents of a checkpoint of ours: what `load_official` gives, and the optimiser with its moments.

    A training that resumes from it takes the optimiser step after the file's last one. The published code
    saves neither random generators nor a place in the data, so both start anew.

    Args:
        source: see `load_official`.
        model: see `load_official`.
        arguments: of `load_official`.

    Raises:
        CheckpointError: see `load_official`; or if the optimiser's state does not fit the parameters.
        ConfigurationError: see `load_official`.
    """
    file = source if isinstance(source, OfficialFile) else read_official(source)
    built = load_official(file, model, **arguments)
    checkpoint: dict[str, Any] = {
        "model_class": type(built).__name__,
        "hyper_parameters": dict(built.hparams),
        "state_dict": built.state_dict(),
        "global_step": file.num_updates,
        "epoch": 0,
        "pytorch-lightning_version": lightning_version,
    }
    if file.optimizer is None:
        return checkpoint
    optimizer, schedulers = _optimizer_state(built, file, find_official(file, model))
    return checkpoint | {
        "optimizer_states": [optimizer],
        "lr_schedulers": schedulers,
        "callbacks": {},
        "loops": _loops(file.num_updates),
    }


# ---------------------------------------------------------------- options


def find_official(file: OfficialFile, model: str | None) -> OfficialModel:
    """What is known about the model in a file.

    Args:
        file: from `read_official`.
        model: name in `OFFICIAL` that is expected; any if None.

    Raises:
        CheckpointError: if the file holds another model, or none that is known.
        ConfigurationError: if there is no such name.
    """
    if model is not None and model not in OFFICIAL:
        raise ConfigurationError(f"model={model!r} is unknown: use one of {', '.join(OFFICIAL)}")
    found = recognise(file.state)
    if found is None:
        raise CheckpointError(
            f"{file.path}: its parameters ({next(iter(file.state))}, ...) are those of none of "
            f"{', '.join(OFFICIAL)}"
        )
    if model not in (None, found, OFFICIAL[found].family):
        raise CheckpointError(f"{file.path}: holds the parameters of {found}, expected those of {model}")
    return OFFICIAL[found]


def _settings(
    file: OfficialFile, official: OfficialModel, flags: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """All options of our class that parameters, flags or the user give."""
    try:
        told = official.options(file.state, flags)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file.path}: {error}") from error
    except (IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{file.path}: its parameters have other shapes than {official.model}'s"
        ) from error
    settings = {name: value for name, value in told.items() if value is not None}
    defaults = dataset_defaults(flags) or (None, None)
    for name, flag, default in zip(SIZES, ("K_steps", "img_size"), defaults, strict=True):
        if name in given or (official.model == "VAE" and name == "num_slots"):
            continue
        found, flagged = settings.get(name), flags.get(flag, default)
        if found is None and flagged is None:
            raise ConfigurationError(
                f"{file.path}: neither its parameters nor flags tell {name}; give --{name}"
            )
        if found is not None and flag in flags and found != flagged:
            raise ConfigurationError(
                f"{file.path}: {name} is {found} by its parameters and {flagged} by the flags ({flag}); "
                "give the flags.json of the same run"
            )
        settings[name] = flagged if found is None else found
    for name in official.asked:
        if name not in given and name not in settings:
            raise ConfigurationError(f"{file.path}: no parameter tells {name}; give --{name}")
    training = _training(file, official, flags)
    if given.get("optimizer") not in (None, training.get("optimizer")):
        training.pop("optimizer_options", None)  # they are those of another one
    return {**settings, **training, **given}


def _training(file: OfficialFile, official: OfficialModel, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Optimiser and objective, where the file has them."""
    settings: dict[str, Any] = {}
    if file.optimizer is not None:
        settings["optimizer"] = name = _optimizer_name(file.optimizer)
        group = file.optimizer["param_groups"][0]
        options = {key: group[key] for key in OPTIONS[name] if group.get(key) is not None}
        settings["optimizer_options"] = options
        rate = group.get("lr")
        if rate is not None and not official.scheduled:
            settings["learning_rate"] = number(rate, f"{file.path}: the optimiser's lr")
    names = {"g_goal": "goal", "g_init": "beta"}
    if file.error_average is not None or (file.beta is None and "g_goal" in flags):
        given = {ours: flags[name] for name, ours in names.items() if name in flags}
        settings["objective"] = GECO(**{**official.geco, **given})
    elif file.beta is not None:
        settings["objective"] = FixedBeta(file.beta[0])
    return settings


def _optimizer_name(optimizer: Mapping[str, Any]) -> str:
    group = optimizer["param_groups"][0]
    if "betas" in group:
        return "Adam"
    return "RMSprop" if "alpha" in group else "SGD"


# ---------------------------------------------------------------- weights and GECO


def _names(file: OfficialFile, official: OfficialModel) -> dict[str, str]:
    """Our name of every official entry that we have, in the official order."""
    names: dict[str, str] = {}
    for key in file.state:
        if key in NO_PARAMETERS:
            continue
        try:
            names[key] = official.rename(key)
        except KeyError as error:
            raise CheckpointError(f"{file.path}: {error.args[0]}") from error
    return names


def _state(file: OfficialFile, official: OfficialModel) -> dict[str, Tensor]:
    """The state under our names."""
    if official.convert is None:
        return {ours: file.state[key] for key, ours in _names(file, official).items()}
    return _converted(file, official, file.state)


def _converted(
    file: OfficialFile, official: OfficialModel, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors by official name, laid out as ours are."""
    assert official.convert is not None
    try:
        return function_named(official.convert)({key: value.numpy() for key, value in tensors.items()})
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{file.path}: its variables are not those of the official model ({error})"
        ) from error


def _set_objective(model: SceneModel, file: OfficialFile) -> None:
    """Puts GECO, or the step of a fixed β's warm-up, where the file's training stood."""
    objective = model.objective
    if isinstance(objective, SoftplusGECO):
        average, beta = (file.state[key] for key in GECO_STATE)  # both are there, see `emorl_state`
        objective.average.fill_(objective.goal * 3 * model.image_size**2 - average)
        objective.beta.fill_(beta)
        objective.step.fill_(file.num_updates)
    elif isinstance(objective, GECO) and file.beta is not None:
        if {len(file.beta), len(file.error_average or file.beta)} != {len(model.branches)}:
            raise CheckpointError(
                f"{file.path}: has {len(file.beta)} β and {len(file.error_average or ())} error averages, "
                f"expected {len(model.branches)} of each for {type(model).__name__}"
            )
        beta = torch.tensor(file.beta, dtype=torch.float64)
        if file.error_average is not None:
            average = torch.tensor(file.error_average, dtype=torch.float64)
            beta = objective.next_beta(beta, average, 3 * model.image_size**2)
            objective.average.copy_(average)
            objective.step.fill_(max(file.num_updates, 1))
        objective.beta.copy_(beta)
    elif isinstance(objective, FixedBeta):
        objective.step.fill_(file.num_updates)
        if isinstance(model, EfficientMORL):  # its refinement follows this one then, not the file's β
            model.follow(objective.weights()[:, 0])


# ---------------------------------------------------------------- training state


def _optimizer_state(
    model: SceneModel, file: OfficialFile, official: OfficialModel
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """States of our optimiser and of its schedule, if there is one.

    Official moments are numbered in the order of the official parameters, by whatever numbers the group
    lists (old versions of torch took addresses).
    """
    assert file.optimizer is not None
    if model.optimizer_name != _optimizer_name(file.optimizer):
        raise ConfigurationError(
            f"{file.path}: optimizer is {_optimizer_name(file.optimizer)} in the file and "
            f"{model.optimizer_name} here; its moments go with the same one alone"
        )
    ours = dict(model.named_parameters())
    numbers = [index for group in file.optimizer["param_groups"] for index in group["params"]]
    keys = _parameter_keys(file, official, ours, len(numbers))
    if len(numbers) != len(keys):
        raise CheckpointError(
            f"{file.path}: the optimiser has {len(numbers)} parameters, expected the model's {len(keys)}"
        )
    states: dict[str, dict[str, Tensor]] = {}
    for index, key in zip(numbers, keys, strict=True):
        if index in file.optimizer["state"] and key not in GECO_STATE:
            name = key if official.convert else official.rename(key)
            where = f"{file.path}: the optimiser's state of {name}"
            states[key] = _moments(file.optimizer["state"][index], file.state[key], where)
    by_name = _moments_by_name(file, official, states)
    moments = {place: by_name[name] for place, name in enumerate(ours) if name in by_name}

    configured: Any = model.configure_optimizers()
    schedule = model.learning_rate_schedule()
    optimizer: Optimizer = configured if schedule is None else configured["optimizer"]
    state: dict[str, Any] = optimizer.state_dict()
    theirs = file.optimizer["param_groups"][0]
    if theirs.get("momentum") and model.optimizer_name == "RMSprop":
        raise CheckpointError(
            f"{file.path}: RMSprop has momentum {theirs['momentum']} in the file, expected none: it would "
            "move weights in a step that is held back; import the weights alone, into a .safetensors"
        )
    for group in state["param_groups"]:
        group |= {name: theirs[name] for name in SETTINGS if name in group and name in theirs}
    schedulers = []
    if schedule is not None:
        scheduler = configured["lr_scheduler"]["scheduler"]
        rates = [model.learning_rate * schedule(file.num_updates)] * len(state["param_groups"])
        last = {"last_epoch": file.num_updates, "_step_count": file.num_updates + 1, "_last_lr": rates}
        schedulers.append(scheduler.state_dict() | last)
        for group, rate in zip(state["param_groups"], rates, strict=True):
            group["lr"] = rate
    return {**state, "state": moments}, schedulers


def _parameter_keys(
    file: OfficialFile, official: OfficialModel, ours: Mapping[str, Tensor], count: int
) -> list[str]:
    """Official names of what the optimiser has, in its order; GECO's state may be among it."""
    if official.convert is None:
        return [
            key
            for key, name in _names(file, official).items()
            if name in ours or name.startswith(official.idle)
        ]
    return [key for key in file.state if key not in GECO_STATE or count == len(file.state)]


def _moments_by_name(
    file: OfficialFile, official: OfficialModel, states: Mapping[str, dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Moments under our names, out of those by official name."""
    if official.convert is None or not states:
        return {official.rename(key): state for key, state in states.items()}
    first = next(iter(states.values()))
    found: dict[str, dict[str, Tensor]] = {}
    for kind in first.keys() - {"step"}:
        tensors = {key: state[kind] for key, state in states.items() if kind in state}
        for name, value in _converted(file, official, tensors).items():
            # parts of what is one parameter here have made the same steps
            found.setdefault(name, {"step": first["step"].clone()})[kind] = value
    return found


def _moments(official: Any, parameter: Tensor, where: str) -> dict[str, Tensor]:
    if not isinstance(official, Mapping):
        raise CheckpointError(f"{where} is a {type(official).__name__}, expected a dict")
    moments = {}
    for name, value in official.items():
        if name == "step":  # a number in old versions of torch
            moments[name] = torch.tensor(number(value, f"{where}: step"), dtype=torch.float32)
        elif name in MOMENTS and isinstance(value, Tensor) and value.shape == parameter.shape:
            moments[name] = value.float()
        elif value is not None:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"{where}: {name} is {shape}, expected {list(parameter.shape)}")
    return moments


def _loops(steps: int) -> dict[str, Any]:
    """The Trainer's counters after `steps` optimiser steps, at the start of an epoch."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)  # a Trainer tells which devices it uses
    try:
        trainer = Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    state: dict[str, Any] = trainer.fit_loop.state_dict()
    for name in ("batch_progress", "automatic_optimization.optim_progress", "scheduler_progress"):
        _count_up(state[f"epoch_loop.{name}"], steps)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
    return {
        "fit_loop": state,
        "validate_loop": trainer.validate_loop.state_dict(),
        "test_loop": trainer.test_loop.state_dict(),
        "predict_loop": trainer.predict_loop.state_dict(),
    }


def _count_up(progress: dict[str, Any], steps: int) -> None:
    """Sets every total of a progress."""
    for name, value in progress.items():
        if name == "total":
            progress[name] = dict.fromkeys(value, steps)
        elif isinstance(value, dict):
            _count_up(value, steps)
