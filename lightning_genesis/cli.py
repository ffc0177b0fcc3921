"""The `lightning-genesis` command.

What answers `--help` is here; the rest is imported when a command runs, so that help and version do not wait
for torch.
"""

import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches

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
COMMANDS = {
    "fit": "train a model: fit --config experiments/genesisv2_multidsprites.yaml",
    "validate": "score on the validation split: validate --config runs/NAME/config.yaml --ckpt_path best",
    "test": "score on the test split: test --config runs/NAME/config.yaml --ckpt_path best",
    "predict": "write masks and components of images: predict --config ... --ckpt_path best",
    "sample": "draw new scenes from the prior: sample runs/NAME --output samples",
    "figures": "draw the papers' figures of a run: figures runs/NAME",
    "label": "a page on which people label samples, offline: label runs/NAME --output page.html",
    "probe": "what a model's latents tell of an image: probe runs/NAME",
    "sweep": "train and test several seeds, then report: sweep --config FILE --seeds 0,1,2",
    "report": "tables, curves and pictures of runs beside the papers: report runs/*-seed*",
    "prepare": "build a dataset's store: prepare multi_dsprites --root data",
    "export": "write a run's weights as safetensors: export runs/NAME weights.safetensors",
    "import": "make the authors' checkpoints ours: import model.ckpt-FINAL --flags flags.json",
    "demo": "train the quickstart on embedded data and show what came of it",
}


def usage() -> str:
    """The text of `--help`."""
    commands = "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
    return (
        f"Lightning Genesis {__version__}: object-centric generative models, trained, compared, reused.\n\n"
        f"usage: lightning-genesis COMMAND [OPTIONS]\n\n{commands}\n\n"
        "`lightning-genesis COMMAND --help` lists the options of a command, `fit --print_config` a whole\n"
        "configuration. `fit --ckpt_path last` resumes a run, `--run.name NAME` names it."
    )


def _training(command: str) -> Callable[[Sequence[str]], None]:
    def run(args: Sequence[str]) -> None:
        from lightning_genesis.commands.fit import main

        main([command, *args])

    return run


def _prepare(args: Sequence[str]) -> None:
    from lightning_genesis.commands.prepare import main

    main(args)


def _export(args: Sequence[str]) -> None:
    from lightning_genesis.commands.export import main

    main(args)


def _import(args: Sequence[str]) -> None:
    from lightning_genesis.commands.import_ import main

    main(args)


def _sample(args: Sequence[str]) -> None:
    from lightning_genesis.commands.sample import main

    main(args)


def _figures(args: Sequence[str]) -> None:
    from lightning_genesis.commands.figures import main

    main(args)


def _sweep(args: Sequence[str]) -> None:
    from lightning_genesis.commands.sweep import main

    main(args)


def _report(args: Sequence[str]) -> None:
    from lightning_genesis.report import main

    main(args)


def _label(args: Sequence[str]) -> None:
    from lightning_genesis.commands.label import main

    main(args)


def _probe(args: Sequence[str]) -> None:
    from lightning_genesis.commands.probe import main

    main(args)


def _demo(args: Sequence[str]) -> None:
    from lightning_genesis.commands.demo import main

    main(args)


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; what a user can mend is shown as one line.

    Returns:
        0; 1 if part of the work could not be done; 2 after an error that a user can mend; 75 if a signal
        stopped a run, which is saved.
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
    own = {
        "sample": _sample,
        "figures": _figures,
        "sweep": _sweep,
        "report": _report,
        "label": _label,
        "probe": _probe,
        "prepare": _prepare,
        "export": _export,
        "import": _import,
        "demo": _demo,
    }
    return _run(own.get(command) or _training(command), rest)


def _run(command: Callable[[Sequence[str]], None], args: Sequence[str]) -> int:
    from data_modules.store import DataError
    from lightning_genesis.errors import UserError

    try:
        command(args)
    except Exception as error:
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
            f"lightning-genesis: {'error: ' if code == 2 else ''}{' '.join(str(cause).split())}",
            file=sys.stderr,
        )
        return code
    return 0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it came from, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    sys.exit(main())
