"""(a) What the machine is, and its two ceilings."""

import platform
import re
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_check.harness import ROOT
from benchmarks.gpu_check.part import Outcome, Report

NOT_NEEDED = ("wandb",)


def main(report: Report) -> None:
    report.item("packages", packages)
    report.item("machine", lambda: machine(report))
    report.item("copy", lambda: copy(report))
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        report.item(f"product, {name}", lambda dtype=dtype: product(report, dtype))


def packages() -> Outcome:
    """Versions of all that the package depends on, as its pyproject.toml says."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        needed = tomllib.load(file)["project"]["dependencies"]
    found, missing = {"python": platform.python_version()}, []
    for requirement in needed:
        name = re.split(r"[\[<>=]", requirement)[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    lacking = [name for name in missing if name not in NOT_NEEDED]
    return Outcome(found, not lacking, f"missing: {', '.join(missing)}" if missing else "")


def machine(report: Report) -> Outcome:
    """Card, memory, libraries."""
    if report.device == "cpu":
        return Outcome({"processor": platform.machine(), "threads": torch.get_num_threads()})
    card = torch.cuda.get_device_properties(0)
    values = {
        "card": card.name,
        "count": torch.cuda.device_count(),
        "GiB": round(card.total_memory / 2**30, 1),
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }
    return Outcome(values)


def best(report: Report, function: object, repeats: int) -> float:
    """Seconds of the fastest of some calls, each to the end of its work."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()  # type: ignore[operator]
        if report.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def copy(report: Report) -> Outcome:
    """Bytes read and written per second by a copy that no cache holds."""
    count = 2**22 if report.tiny else 2**30
    source = torch.zeros(count, device=report.device)
    target = torch.empty_like(source)
    seconds = best(report, lambda: target.copy_(source), 10)
    return Outcome({"GB/s": 2 * 4 * count / seconds / 1e9})


def product(report: Report, dtype: torch.dtype) -> Outcome:
    """Operations per second of a square matrix product; float32 as torch has it."""
    side = 512 if report.tiny else 8192
    left = torch.randn(side, side, device=report.device, dtype=dtype)
    seconds = best(report, lambda: left @ left, 10)
    return Outcome({"TFLOP/s": 2 * side**3 / seconds / 1e12, "side": side})
