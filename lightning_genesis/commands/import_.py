"""`lightning-genesis import FILE`: an official checkpoint becomes one of ours, to evaluate or to train on.

Without --model it is told by the parameters. K, image size and options are taken from the file and from the
flags.json next to it, as far as they tell; every option of our model can be given as --NAME VALUE and counts
before them.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from lightning_genesis.classes import constructor_parameters
from lightning_genesis.commands.arguments import CommandParser
from lightning_genesis.commands.messages import explain
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.interop.known_models import OFFICIAL, OfficialModel
from lightning_genesis.interop.official import find_official, import_official
from lightning_genesis.interop.reading import read_official
from lightning_genesis.models.contract import LINKED
from lightning_genesis.storage.checkpoint import write_checkpoint, write_weights
from lightning_genesis.storage.files import replacing

OUTPUTS = (".ckpt", ".safetensors")


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-genesis import", description=__doc__)
    parser.add_argument("file", type=Path, help="an official checkpoint, or a state dict")
    parser.add_argument("--model", choices=OFFICIAL, help="what it holds")
    parser.add_argument("--num_slots", type=int, help="number of slots K")
    parser.add_argument("--image_size", type=int, help="side of the images")
    parser.add_argument(
        "--flags", type=Path, help="flags.json of the run; the one next to FILE if there is one"
    )
    parser.add_argument("--output", type=Path, help="a .ckpt or .safetensors; FILE.imported.ckpt by default")
    return parser


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        CheckpointError: if the file is damaged, or none of the authors'.
        ConfigurationError: if an option is wrong or missing, or the output is there already.
    """
    options, rest = _parser().parse_known_args(list(args))
    output: Path = options.output or options.file.with_name(f"{options.file.name}.imported.ckpt")
    if output.suffix not in OUTPUTS:
        raise ConfigurationError(f"import: --output {output} should end in {' or '.join(OUTPUTS)}")
    config = output.with_suffix(".yaml")
    for path in (output, config):
        if path.exists():
            raise ConfigurationError(f"import: {path} is there already; give another --output")
    flags = options.flags or options.file.with_name("flags.json")
    if options.flags is None and not flags.is_file():
        flags = None

    file = read_official(options.file)
    official = find_official(file, options.model)
    checkpoint = import_official(
        file,
        options.model,
        num_slots=options.num_slots,
        image_size=options.image_size,
        flags=flags,
        **_model_options(official, rest),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".safetensors":
        write_weights(output, checkpoint)
    else:
        write_checkpoint(output, checkpoint)
    with replacing(config) as temporary:
        section = {"model": _model_section(official, checkpoint)}
        temporary.write_text(yaml.safe_dump(section, sort_keys=False), encoding="utf-8")
    _tell(options.file, output, config, flags, checkpoint)


def _model_options(official: OfficialModel, args: Sequence[str]) -> dict[str, Any]:
    """Options of our model as given, in their types."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(official.kind, skip={"num_slots", "image_size"})
    try:
        return dict(vars(parser.instantiate_classes(parser.parse_args(list(args), defaults=False))))
    except Exception as error:
        known = constructor_parameters(official.kind)
        raise ConfigurationError(f"import: {explain(str(error), [f'--{name}' for name in known])}") from error


def _model_section(official: OfficialModel, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The model as a configuration has it: what differs from our defaults, but for what the data know."""
    defaults = constructor_parameters(official.kind)
    values = {
        name: value
        for name, value in checkpoint["hyper_parameters"].items()
        if name not in LINKED and value != defaults[name].default
    }
    kind = official.kind
    return {"class_path": f"lightning_genesis.models.{kind.__name__}", "init_args": values}


def _tell(file: Path, output: Path, config: Path, flags: Path | None, checkpoint: dict[str, Any]) -> None:
    values = checkpoint["hyper_parameters"]
    told = f"flags from {flags}" if flags else "no flags"
    print(
        f"{file} -> {output}: {checkpoint['model_class']}, {values['num_slots']} slots, "
        f"{values['image_size']} px, after {checkpoint['global_step']} steps; {told}; options in {config}"
    )
    command, weights = f"--config {shlex.quote(str(config))} --data DATA.yaml", shlex.quote(str(output))
    print(f"score it: lightning-genesis test {command} --ckpt_path {weights}")
    resumable = "optimizer_states" in checkpoint and output.suffix == ".ckpt"
    start = "--ckpt_path" if resumable else "--init_from"
    print(f"train on: lightning-genesis fit {command} {start} {weights}")
