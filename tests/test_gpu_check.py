"""The harness of `make gpu-check`: parts in processes of their own, limits, failures that hide nothing."""

import json
import os
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu_check.harness import PARTS, Part, Settings, run_parts, unpack_wheels

GOOD = """
from benchmarks.gpu_check.part import Outcome
def main(report):
    report.item("fine", lambda: Outcome({"ms": 1.25, "device": report.device}))
    report.item("left out", lambda: Outcome(), needs=1e9)
"""
WRONG = """
from benchmarks.gpu_check.part import Outcome
def main(report):
    report.item("broken", lambda: 1 / 0)
    report.item("beside it", Outcome)
"""
DEAD = "import os\ndef main(report):\n    os._exit(9)\n"
HANGING = """
import signal, subprocess, sys, time
from pathlib import Path
from benchmarks.gpu_check.part import Outcome
def main(report):
    report.item("before", Outcome)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(report.out / "child").write_text(str(child.pid))
    time.sleep(600)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "stand_in_parts"
    folder.mkdir()
    for name, text in {"good": GOOD, "wrong": WRONG, "dead": DEAD, "hanging": HANGING, "late": GOOD}.items():
        (folder / f"{name}.py").write_text(text)
    paths = [str(Path(__file__).parents[1]), str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setattr("benchmarks.gpu_check.harness.GRACE", 0.3)
    return "stand_in_parts"


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_fails_hides_nothing(package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("good", "wrong", "dead", "late")
    parts = [Part("abcd"[i], name, 0.25, name) for i, name in enumerate(names)]
    out = tmp_path / "out"
    assert not run_parts(Settings("cpu", out, 400.0, fail="late"), parts, package)
    report = json.loads((out / "gpu_check.json").read_text())
    found = report["parts"]
    assert [*found] == [*names]
    assert {name: found[name]["ok"] for name in names} == {**dict.fromkeys(names, False), "good": True}
    fine, left_out = found["good"]["rows"]
    assert (fine["ok"], fine["values"]) == (True, {"ms": 1.25, "device": "cpu"})
    assert (left_out["ok"], left_out["note"][:8]) == (None, "left out")
    broken, beside = found["wrong"]["rows"]
    assert (broken["ok"], broken["note"]) == (False, "ZeroDivisionError: division by zero")
    assert beside["ok"]
    assert found["dead"]["ended"].startswith("ended with code 9")
    assert "failed on purpose" in found["late"]["ended"]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("(a) good") and ": ok," in line for line in lines)
    assert lines[-1] == "1 of 4 parts well; not: wrong, dead, late"
    assert sorted(path.name for path in out.iterdir()) == ["gpu_check.json", "gpu_check.log"]


def test_a_part_that_hangs_is_stopped_with_its_children(package: str, tmp_path: Path) -> None:
    parts = [Part("a", "hanging", 0.5, ""), Part("b", "good", 0.0, "")]
    out = tmp_path / "out"
    # as long as this machine needs to start the part, and no longer
    began = time.monotonic()
    assert run_parts(Settings("cpu", out, 300.0), [Part("b", "good", 1.0, "")], package)
    seconds = 4 * (time.monotonic() - began) + 2
    assert not run_parts(Settings("cpu", out, seconds), parts, package)
    found = json.loads((out / "gpu_check.json").read_text())["parts"]
    assert found["hanging"]["ended"].startswith("stopped after")
    assert [row["item"] for row in found["hanging"]["rows"]] == ["before"]
    assert found["good"]["ok"]
    child = int((out / "child").read_text())
    deadline = time.monotonic() + 60
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


def test_nothing_starts_without_time(tmp_path: Path) -> None:
    assert not run_parts(Settings("cpu", tmp_path, 1.0), PARTS[:2])
    found = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert [result["ended"] for result in found.values()] == ["no time was left"] * 2


def test_parts_are_modules_and_their_shares_leave_some() -> None:
    folder = Path(__file__).parents[1] / "benchmarks" / "gpu_check"
    assert all("def main(report: Report)" in (folder / f"{part.name}.py").read_text() for part in PARTS)
    assert [part.letter for part in PARTS] == [*"abcdefgh"]
    assert sum(part.share for part in PARTS) < 0.95


def test_only_what_is_missing_is_unpacked(tmp_path: Path) -> None:
    for name in ("nowhere_installed-1.0", "torch-0.1"):
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name.partition('-')[0]}/__init__.py", "value = 5\n")
    assert unpack_wheels(tmp_path, tmp_path / "there") == ["nowhere_installed"]
    assert (tmp_path / "there" / "nowhere_installed" / "__init__.py").read_text() == "value = 5\n"
    assert not (tmp_path / "there" / "torch").exists()
