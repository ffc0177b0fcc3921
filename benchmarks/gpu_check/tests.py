"""(b) The tests that need a GPU, file by file, by pytest."""

import subprocess
import sys
import xml.etree.ElementTree as xml

from benchmarks.gpu_check.harness import ROOT
from benchmarks.gpu_check.part import Outcome, Report


def main(report: Report) -> None:
    # named one by one: looking for tests in all files would take longer than running these
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    if report.tiny:
        report.item("pytest", lambda: Outcome({"files": len(files)}, None, "left out: needs a CUDA device"))
        return
    results = report.out / ".tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    report.item("pytest", lambda: run([*command, f"--junitxml={results}", *map(str, files)], report.left - 3))
    if results.is_file():
        for case in xml.parse(results).iter("testcase"):
            report.item(f"{case.get('classname')}::{case.get('name')}", lambda case=case: outcome(case))
        results.unlink()


def run(command: list[str], limit: float) -> Outcome:
    """Whether any test ran, and whether all ended."""
    code = subprocess.run(command, cwd=ROOT, timeout=limit, check=False).returncode
    return Outcome({"code": code}, code in (0, 1), "" if code in (0, 1) else "see gpu_check.log")


def outcome(case: xml.Element) -> Outcome:
    """What pytest says of one test."""
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return Outcome(ok=None if kind == "skipped" else False, note=str(found.get("message"))[:200])
    return Outcome({"s": float(case.get("time", "nan"))})
