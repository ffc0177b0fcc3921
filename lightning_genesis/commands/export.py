"""`lightning-genesis export RUN FILE`: a run's weights as safetensors, to share or to load elsewhere."""

from collections.abc import Sequence
from pathlib import Path

from lightning_genesis.commands.arguments import CommandParser, add_checkpoint_option
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.runs.run import find_checkpoint, read_data_config
from lightning_genesis.storage.checkpoint import read_checkpoint, write_weights


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        CheckpointError: if the run has no readable checkpoint.
        ConfigurationError: if the file is no `.safetensors`.
    """
    parser = CommandParser(prog="lightning-genesis export", description=__doc__)
    parser.add_argument("run", type=str, help="a run's folder")
    parser.add_argument("file", type=str, help="a .safetensors file")
    add_checkpoint_option(parser)
    options = parser.parse_args(list(args))
    file = Path(options.file)
    if file.suffix != ".safetensors":
        raise ConfigurationError(f"export: {file} should end in .safetensors")
    run = Path(options.run)
    path = find_checkpoint(run, options.checkpoint)
    data = read_data_config(run)
    (data.get("init_args") or {}).pop("root", None)  # a place on this machine, no part of the data
    write_weights(file, read_checkpoint(path), data)
    print(f"{path} -> {file} ({file.stat().st_size / 1e6:.1f} MB)")
