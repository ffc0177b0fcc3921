"""Corrupted and hostile inputs for every reader and command, drawn by a seed: `docs/trust.md` has the table.

    python benchmarks/hostile.py --cases 10000
    python benchmarks/hostile.py --cases 100 --only yaml,lines

Of each case, one thing has to come: a line that refuses it, or the right result. A traceback, more than 5 s
of CPU, a file that is left behind, or code in a file that runs, is printed and makes the exit code 1.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hostile_files import (
    SCALARS,
    Case,
    a_result,
    arrays,
    changed,
    checkpoints,
    damaged,
    fit_configuration,
    json_files,
    logs,
    odd_file,
    pictures,
    weights,
    yaml_files,
)

from data_modules import DataError
from lightning_genesis import cli
from lightning_genesis.commands import fit
from lightning_genesis.commands.report import report
from lightning_genesis.errors import ConfigurationError, Incomplete, UserError
from lightning_genesis.runs.results import write_result

LONGEST = 5
"""CPU seconds of a case."""

# ---------------------------------------------------------------- commands


def reports(draw: random.Random, folder: Path) -> Iterator[Case]:
    """A good run beside one of which a file holds something else."""
    root = folder / "runs"
    while True:
        shutil.rmtree(root, ignore_errors=True)
        good, bad = root / "good-seed0", root / draw.choice(("bad-seed1", "b\x1b[2Jd", os.fsdecode(b"\xff")))
        for run in (good, bad):
            write_result(run, "test-genesisv2", a_result({"ari_fg": 0.5, "elbo": -900.0}))
            (run / "metrics.csv").write_text("step,train/loss\n0,3\n100,2\n200,1.5\n")
            (run / "pictures").mkdir()
        file = next((bad / "metrics").glob("*.json"))
        kind = draw.randrange(5)
        if kind < 2:
            file.write_text(json.dumps(changed(json.loads(file.read_text()), draw)))
        elif kind == 2:
            (bad / "config.yaml").write_bytes(damaged(b"seed_everything: 3\nmodel: {class_path: a.B}", draw))
        elif kind == 3:
            cell = draw.choice(("1e99", "-1e308", "1e-320", "1" * 400, "inf"))
            (bad / "metrics.csv").write_text(
                f"step,train/loss,geco/a/beta\n0,{cell},1\n{cell},1,{cell}\n9,1,2\n"
            )
        else:
            odd_file(bad / draw.choice(("pictures/samples-1.png", "metrics/x.json", "config.yaml")), draw)

        def make(good: Path = good, bad: Path = bad) -> Any:
            try:
                report([good, bad], folder / "out")
            except Incomplete as error:
                if "good-seed0" not in (folder / "out/report.html").read_text():
                    raise AssertionError("the good run is not shown") from error
                raise

        yield make


class Accepted(BaseException):
    """A command line was taken, and would start to work now."""


OPTIONS = (
    *(
        "model",
        "model.learning_rate",
        "model.latent_dim",
        "model.feature_dim",
        "model.std",
        "model.objective",
    ),
    *("model.optimizer", "model.schedule", "model.warmup_steps", "model.compile", "data", "data.batch_size"),
    *("data.image_size", "data.num_slots", "data.train_size", "data.num_workers", "data.seed", "trainer"),
    *("trainer.max_steps", "trainer.devices", "trainer.precision", "trainer.strategy", "trainer.max_time"),
    *("trainer.callbacks", "trainer.logger", "trainer.limit_train_batches", "trainer.val_check_interval"),
    *(
        "trainer.gradient_clip_val",
        "trainer.accumulate_grad_batches",
        "seed_everything",
        "run.name",
        "run.root",
    ),
    *(
        "init_from",
        "ckpt_path",
        "checkpoint.last_every",
        "rollback.max_rollbacks",
        "pictures.every",
        "config",
    ),
    *("lr", "epochs", "resume", "protocol", "fid.num_images", "change", "model.num_slots", "trainer.logger"),
)


def lines(draw: random.Random, folder: Path) -> Iterator[Case]:
    """Command lines of `fit` and the others, with an option of anything."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(fit_configuration()))
    others = ("sample", "figures", "label", "probe", "export", "report", "import", "sweep --seeds")

    def take(self: Any, subcommand: str) -> None:
        raise Accepted

    fit.ExperimentCLI._run_subcommand = take  # type: ignore[method-assign]
    while True:
        value = str(draw.choice(SCALARS)).replace("\0", "")
        if draw.random() < 0.15:
            args = [*shlex.split(draw.choice(others)), value, *draw.choice(([], ["--output", "o"]))]
        else:
            command = draw.choice(("fit", "fit", "fit", "test", "predict"))
            args = [command, "--config", "tiny.yaml", f"--{draw.choice(OPTIONS)}={value}"]
        yield lambda args=args: _command(args)


def _command(args: list[str]) -> None:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(args)
        except Accepted:
            return
        finally:
            left = [path.name for path in Path.cwd().iterdir() if path.name not in ("tiny.yaml", "out")]
            for name in left:
                shutil.rmtree(name, ignore_errors=True)
    told = [line for line in errors.getvalue().splitlines() if line.startswith("lightning-genesis: ")]
    if left:
        raise AssertionError(f"{shlex.join(args)[:200]} left {left}")
    if code != 2 or len(told) != 1:
        raise AssertionError(f"{shlex.join(args)[:200]}: code {code}, {len(told)} lines")
    raise ConfigurationError(told[0])


# ---------------------------------------------------------------- the run

GROUPS: dict[str, tuple[Callable[[random.Random, Path], Iterator[Case]], int]] = {
    "checkpoints": (checkpoints, 20),
    "weights": (weights, 18),
    "yaml": (yaml_files, 20),
    "json": (json_files, 20),
    "logs": (logs, 8),
    "pictures": (pictures, 6),
    "arrays": (arrays, 4),
    "reports": (reports, 2),
    "lines": (lines, 2),
}
"""What is tried, and how many of a hundred cases."""


def outcome(case: Case, folder: Path) -> str:
    """`refused`, `right`, or what went wrong."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {LONGEST} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        case()
        found = "right"
    except (UserError, DataError) as error:
        found = "refused" if "\n" not in str(error) else f"several lines: {error}"
        if isinstance(error, Incomplete):
            found = "right"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    if (folder / "marker").exists():
        (folder / "marker").unlink()
        return "code in the file was run"
    if left := [path.name for path in folder.rglob("*.tmp")]:
        return f"left behind: {left}"
    return found


def main() -> int:
    """Runs the corpora and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(GROUPS), help="groups, with commas between them")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = {name: GROUPS[name] for name in options.only.split(",")}
    whole = sum(share for _, share in chosen.values())
    wrong = 0
    print("| group | cases | refused in one line | right | anything else | slowest, CPU s |")
    print("|---|---|---|---|---|---|")
    for name, (make, share) in chosen.items():
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            cases = make(random.Random(f"{options.seed} {name}"), Path(place))
            counts: Counter[str] = Counter()
            slowest = 0.0
            for number in range(max(1, options.cases * share // whole)):
                case = next(cases)
                start = time.process_time()
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    found = outcome(case, Path(place))
                slowest = max(slowest, time.process_time() - start)
                counts[found if found in ("refused", "right") else "else"] += 1
                if found not in ("refused", "right"):
                    print(f"{name} {number}: {found}", file=sys.stderr)
            wrong += counts["else"]
            row = (name, counts.total(), counts["refused"], counts["right"], counts["else"], f"{slowest:.1f}")
            print(f"| {' | '.join(map(str, row))} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
