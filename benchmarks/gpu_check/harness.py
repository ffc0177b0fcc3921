"""Runs the parts of the check one after another, each in a process of its own with a time limit.

Only the standard library is imported here: whatever is wrong with torch or this repository is the finding of
a part, and the others still report.
"""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GRACE = 5.0
"""Seconds that a part has to end after SIGTERM."""


@dataclass(frozen=True)
class Part:
    """A row of the table below."""

    letter: str
    name: str
    """Of its module in this package."""
    share: float
    """Of the whole time, at most; 0 for all that is left."""
    what: str


PARTS = (
    Part("a", "versions", 0.06, "versions, card, ceilings of copy and product"),
    Part("b", "tests", 0.14, "the tests that need a GPU"),
    Part("c", "steps", 0.22, "every model in every precision: losses against the CPU's, waits, kernels"),
    Part("d", "evaluation", 0.17, "scores, samples, FID against the CPU's; save, kill and resume"),
    Part("e", "ranks", 0.06, "strategy ddp on one device"),
    Part("f", "timing", 0.19, "images per second, memory, share of the ceiling; eager and compiled"),
    Part("g", "graphs", 0.08, "compile: reduce-overhead"),
    Part("h", "training", 0.0, "GENESIS-V2 on Multi-dSprites with the time that is left"),
)


@dataclass(frozen=True)
class Settings:
    """What all parts are told."""

    device: str
    out: Path
    """Where results go: gpu_check.json, gpu_check.log, and the trained checkpoint."""
    seconds: float
    """Of the whole check, at most."""
    fail: str = ""
    """Part that fails on purpose."""
    models: tuple[str, ...] = ()
    """Those that are looked at; all if empty."""


def run_parts(settings: Settings, parts: Sequence[Part] = PARTS, package: str = __package__) -> bool:
    """Runs them, prints and writes what they found after every one of them.

    Returns:
        whether all is well.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    began, found = time.monotonic(), dict[str, Any]()
    log = settings.out / "gpu_check.log"
    log.write_bytes(b"")
    for part in parts:
        left = settings.seconds - (time.monotonic() - began) - GRACE
        limit = min(part.share * settings.seconds or left, left)
        found[part.name] = run_part(part, limit, settings, log, package)
        say(part, found[part.name])
        report = {"device": settings.device, "seconds": round(time.monotonic() - began, 1), "parts": found}
        write_json(settings.out / "gpu_check.json", report)
    bad = [name for name, result in found.items() if not result["ok"]]
    print(f"{len(found) - len(bad)} of {len(found)} parts well" + (f"; not: {', '.join(bad)}" if bad else ""))
    return not bad


def run_part(part: Part, limit: float, settings: Settings, log: Path, package: str) -> dict[str, Any]:
    """What a part reported, in whatever way it ended.

    Returns:
        `ok`, `ended` (the reason, if it did not end by itself with 0), `seconds` and `rows`.
    """
    if limit <= 0:
        return {"ok": False, "ended": "no time was left", "seconds": 0.0, "rows": []}
    rows = settings.out / f".{part.name}.jsonl"
    rows.write_bytes(b"")
    command = [sys.executable, "-m", "benchmarks.gpu_check.part", f"{package}.{part.name}"]
    command += ["--device", settings.device, "--out", str(settings.out), "--rows", str(rows)]
    command += ["--seconds", f"{limit:.1f}", *(["--fail"] if settings.fail == part.name else [])]
    command += ["--models", *settings.models] if settings.models else []
    began = time.monotonic()
    with open(log, "ab") as output:
        output.write(f"==== {part.name}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
        ended = wait(process, limit)
    seconds = round(time.monotonic() - began, 1)
    read = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    rows.unlink()
    if ended == "ended with code 1" and any(row["ok"] is False for row in read):
        ended = ""  # the rows say it
    elif ended.startswith("ended"):
        ended += f": {last_line(log)}"
    well = not ended and bool(read) and all(row["ok"] is not False for row in read)
    return {"ok": well, "ended": ended, "seconds": seconds, "rows": read}


def wait(process: subprocess.Popen[bytes], limit: float) -> str:
    """Waits, and stops the process and all that it started; why it ended, nothing for code 0."""
    try:
        code = process.wait(limit)
        return f"ended with code {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    finally:
        for number, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(grace)


def last_line(log: Path) -> str:
    """What a process that failed said last, which for Python is the error."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def say(part: Part, result: dict[str, Any]) -> None:
    """Prints what a part found, a line for every row."""
    head = "ok" if result["ok"] else f"NOT OK{', ' if result['ended'] else ''}{result['ended']}"
    print(f"({part.letter}) {part.name}: {part.what}: {head}, {result['seconds']:.0f} s")
    for row in result["rows"]:
        state = {True: "ok", False: "FAILED", None: "-"}[row["ok"]]
        values = ", ".join(f"{name} {shown(value)}" for name, value in row["values"].items())
        print(f"    {state:<6} {row['item']}: {'; '.join(filter(None, [row['note'], values]))}")
    sys.stdout.flush()


def shown(value: Any) -> str:
    """A value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_json(path: Path, report: Any) -> None:
    """In the place of the file before, whole."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(path)


def unpack_wheels(folder: Path, into: Path) -> list[str]:
    """Makes of a folder of wheels what this Python lacks, without pip and without a network.

    Args:
        folder: of `*.whl`.
        into: folder for what is unpacked, to be put on `PYTHONPATH`.

    Returns:
        names of what was unpacked.
    """
    names = []
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.partition("-")[0]
        try:
            distribution(name)
        except PackageNotFoundError:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(into)
            names.append(name)
    return names
