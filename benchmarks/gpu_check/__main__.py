"""Runs the whole check, or some parts: `python3 -m benchmarks.gpu_check [--device cpu]`."""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu_check.harness import PARTS, ROOT, Settings, run_parts, unpack_wheels

SECONDS = {"cuda": 480.0, "cpu": 1800.0}


def leave(number: int, frame: object) -> None:
    """Ends as Ctrl-C does, so that no part is left behind."""
    raise KeyboardInterrupt


def main() -> int:
    """0 if all is well, 1 if a part found or met something, 2 for a wrong option."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: all sizes are tiny")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what this Python lacks")
    parser.add_argument("--seconds", type=float, help="of all parts; 480 on a GPU, 1800 on a CPU")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="some of all_models.py")
    parser.add_argument("--fail", choices=names, default="", metavar="PART", help="make it fail, to see")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, leave)
    with tempfile.TemporaryDirectory() as unpacked:
        if arguments.wheels is not None:
            if not arguments.wheels.is_dir():
                parser.error(f"--wheels: {arguments.wheels} is no folder")
            print(f"wheels: {', '.join(unpack_wheels(arguments.wheels, Path(unpacked))) or 'none needed'}")
        paths = [str(ROOT), unpacked, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "WANDB_MODE": "disabled"}
        settings = Settings(
            arguments.device,
            arguments.out.resolve(),
            arguments.seconds or SECONDS[arguments.device],
            arguments.fail,
            tuple(arguments.models),
        )
        chosen = [part for part in PARTS if arguments.only is None or part.name in arguments.only]
        return 0 if run_parts(settings, chosen) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
