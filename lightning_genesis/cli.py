"""The `lightning-genesis` command.

What answers `--help` is here; the rest is imported when a command runs, so that help and version do not wait
for torch.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import NamedTuple

from lightning_genesis import __version__

ON_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
"""What is wrong with a disk or a path, not with the program: one line says it."""


INTERRUPTED = 130
"""Exit code of a shell's programs after Ctrl-C."""
STOPPED = 75
"""Exit code of what a signal has stopped, `errors.Stopped.exit_code`."""


class Command(NamedTuple):
    """A row of the table below."""

    module: str
    """Of `lightning_genesis.commands`; its `main` takes the arguments after the command's name."""
    help: str
    """One line for `--help`."""
    shares_module: bool = False
    """Whether the module has several commands; `main` then takes the command's name as well."""


COMMANDS = {
    "fit": Command("fit", "train a model: fit --config experiments/genesisv2_multidsprites.yaml", True),
    "validate": Command(
        "fit", "score on the validation split: validate --config runs/NAME/config.yaml --ckpt_path best", True
    ),
    "test": Command(
        "fit", "score on the test split: test --config runs/NAME/config.yaml --ckpt_path best", True
    ),
    "predict": Command(
        "fit", "write masks and components of images: predict --config ... --ckpt_path best", True
    ),
    "sample": Command("sample", "draw new scenes from the prior: sample runs/NAME --output samples"),
    "figures": Command("figures", "draw the papers' figures of a run: figures runs/NAME"),
    "fit-prior": Command(
        "fit_prior",
        "fit a prior to the slots of a trained model, any: fit-prior runs/NAME; then --prior NAME",
    ),
    "generation": Command(
        "generation", "reconstructions, recombined slots and samples of priors compared: generation runs/NAME"
    ),
    "label": Command(
        "label", "a page on which people label samples, offline: label runs/NAME --output page.html"
    ),
    "probe": Command("probe", "what a model's latents tell of an image: probe runs/NAME"),
    "sweep": Command(
        "sweep", "train and test several seeds, and values of any option: sweep --config FILE --seeds 0,1,2"
    ),
    "report": Command("report", "tables, curves and pictures of runs beside the papers: report runs/*-seed*"),
    "dashboard": Command("dashboard", "a saved W&B workspace for a project: dashboard lightning-genesis"),
    "experiments": Command("experiments", "list the experiments that come along, with source and result"),
    "zoo": Command("zoo", "list the trained models that come along: sample zoo:NAME --output samples"),
    "prepare": Command("prepare", "build a dataset's store: prepare multi_dsprites --root data"),
    "export": Command("export", "write a run's weights as safetensors: export runs/NAME weights.safetensors"),
    "import": Command(
        "import_", "make the authors' checkpoints ours: import model.ckpt-FINAL --flags flags.json"
    ),
    "demo": Command("demo", "train the quickstart on embedded data and show what came of it"),
}


def usage() -> str:
    """The text of `--help`."""
    commands = "\n".join(f"  {name:<11} {command.help}" for name, command in COMMANDS.items())
    return (
        f"Lightning Genesis {__version__}: object-centric generative models, trained, compared, reused.\n\n"
        f"usage: lightning-genesis COMMAND [OPTIONS]\n\n{commands}\n\n"
        "`lightning-genesis COMMAND --help` lists the options of a command, `fit --print_config` a whole\n"
        "configuration. `fit --ckpt_path last` resumes a run, `--run.name NAME` names it."
    )


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; what a user can mend is shown as one line.

    Returns:
        0; 1 if part of the work could not be done; 2 after an error that a user can mend; 75 if a signal
        stopped a run, which is saved; 130 after Ctrl-C elsewhere.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"lightning-genesis {__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        close = get_close_matches(command, COMMANDS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        print(
            f"lightning-genesis: no command {command!r}{hint}; known are {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    with _leaving_while_it_starts() if command == "fit" else nullcontext():
        return _run(COMMANDS[command], command, rest)


@contextmanager
def _leaving_while_it_starts() -> Iterator[None]:
    """While `fit` imports what it needs, a signal ends it as it does later; an import is not to see it."""

    def leave(number: int, frame: FrameType | None) -> None:
        text = (
            f"lightning-genesis: {signal.Signals(number).name}: stopped before training, nothing was unsaved"
        )
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"{text}\n".encode())
        os._exit(STOPPED)

    # Python allows it nowhere else
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT) if is_main else ()
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if number != signal.SIGHUP or handler != signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(command: Command, name: str, args: Sequence[str]) -> int:
    try:
        module = import_module(f"lightning_genesis.commands.{command.module}")
        module.main([name, *args] if command.shares_module else args)
    except KeyboardInterrupt:
        print(f"lightning-genesis: {name}: stopped by Ctrl-C", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from data_modules.store import DataError  # imports torch, which not every command needs
        from lightning_genesis.errors import UserError
        from lightning_genesis.storage.text import shown

        # The parser wraps what a constructor raises; the innermost error of ours says it best.
        mendable = [cause for cause in _causes(error) if isinstance(cause, UserError | DataError)]
        on_disk = [cause for cause in _causes(error) if isinstance(cause, OSError) and cause.errno in ON_DISK]
        if not (mendable or on_disk):
            raise
        cause = (mendable or on_disk)[-1]
        if not mendable:
            cause = UserError(f"{on_disk[-1].filename or 'a file of the run'}: {on_disk[-1].strerror}")
        code = getattr(cause, "exit_code", 2)
        # a run that was stopped and saved has met no error
        print(
            f"lightning-genesis: {'error: ' if code == 2 else ''}{shown(' '.join(str(cause).split()))}",
            file=sys.stderr,
        )
        return code
    return 0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it came from, outermost first."""
    seen: set[int] = set()  # an error that is raised again can come from itself
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


if __name__ == "__main__":
    sys.exit(main())
