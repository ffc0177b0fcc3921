"""What a user gets who installs the wheel: the package with its experiments, weights and templates."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from lightning_genesis.runs.experiments import find_experiment, list_experiments
from tests.test_layers import PACKAGES, ROOT


def test_every_package_is_named() -> None:
    """`pyproject.toml` lists the packages, because the experiments lie outside of one."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(listed) == found | {"lightning_genesis.experiments"}


def test_experiments_are_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quickstart = ROOT / "experiments" / "quickstart.yaml"
    for name in ("experiments/quickstart.yaml", "quickstart", "quickstart.yaml"):
        assert find_experiment(name) == quickstart
    assert find_experiment("experiments/data/clevr6.yaml") == ROOT / "experiments" / "data" / "clevr6.yaml"
    (tmp_path / "quickstart.yaml").write_text("model: {}")
    assert find_experiment("quickstart.yaml") == Path("quickstart.yaml")  # one here wins
    for name, hint in (
        ("quikstart", "did you mean quickstart?"),
        ("../experiments/quickstart.yaml", "no such file"),
    ):
        with pytest.raises(ValueError, match=hint.replace("?", r"\?")):
            find_experiment(name)


def test_every_experiment_has_a_line() -> None:
    found = list_experiments()
    assert {one.name for one in found} == {path.stem for path in (ROOT / "experiments").glob("*.yaml")}
    for one in found:
        assert one.title, one.name
        assert one.source, one.name
        assert one.expected, one.name


def build(folder: Path) -> Path:
    """The wheel of this checkout, without its dependencies."""
    copy = folder / "source"
    names = ("lightning_genesis", "data_modules", "experiments", "pyproject.toml", "README.md", "LICENSE")
    copy.mkdir()
    for name in names:  # a build writes beside the sources
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy / name)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(copy),
    ]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_folder(tmp_path: Path) -> None:
    """Ten steps of the quickstart and the demo, by an environment that has the wheel and its dependencies."""
    wheel = build(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    experiments = {path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").rglob("*.*")}
    assert {f"lightning_genesis/{name}" for name in experiments} <= set(names)
    assert "lightning_genesis/report/page.html" in names
    place = tmp_path / "environment"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    # the dependencies, but not this checkout: files of paths are not read there
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"

    def run(*words: str) -> str:
        command = [place / "bin" / "lightning-genesis", *words]
        done = subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    where = [python, "-c", "import lightning_genesis as found; print(found.__file__)"]
    assert (
        str(site) in subprocess.run(where, cwd=empty, env=environment, capture_output=True, text=True).stdout
    )
    assert "quickstart" in run("experiments")
    steps = ["--trainer.max_steps", "10", "--trainer.val_check_interval", "10", "--run.wandb", "false"]
    run("fit", "--config", "experiments/quickstart.yaml", *steps)
    assert (empty / "runs" / "quickstart-seed0" / "checkpoints" / "last.ckpt").is_file()
    run("demo", "--minutes", "1")
    assert (empty / "runs" / "demo-1" / "pictures" / "demo.png").is_file()
