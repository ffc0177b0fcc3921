"""The `sweep` command, and the files for sweeps of W&B."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from lightning_genesis import models
from lightning_genesis.cli import main
from lightning_genesis.commands import sweep, sweep_processes
from lightning_genesis.models.contract import LINKED
from lightning_genesis.runs.loading import build_data
from lightning_genesis.runs.loggers import make_wandb_logger
from tests.ranks.command import TIMEOUT
from tests.report.fake_runs import add_result, make_run
from tests.test_cli import TINY

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `lightning-genesis sweep` in an empty folder, with a stub in place of `fit` and `test`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    stub = (sys.executable, "-S", str(Path(__file__).with_name("stub_command.py")))
    monkeypatch.setattr(sweep_processes, "COMMAND", stub)
    monkeypatch.setattr(sweep, "READER", (*stub, "configurations"))
    monkeypatch.setattr(sweep_processes, "POLL", 0.02)
    result = add_result(make_run(tmp_path, "genesis_gqn", 0), "genesis_gqn", 0, {"ari_fg": 0.5})
    result.rename("result.json")
    return lambda *args: main(["sweep", "--config", "my_experiment.yaml", *args])


def calls(event: str = "start") -> list[dict[str, Any]]:
    """What the stub was asked for, in this order; then forgets it."""
    path = Path("calls.jsonl")
    entries = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )
    path.unlink(missing_ok=True)
    return [entry for entry in entries if entry["event"] == event]


def stages() -> list[tuple[str, int]]:
    return [(entry["stage"], entry["seed"]) for entry in calls()]


# ---------------------------------------------------------------- order and resumption


def test_trains_and_tests_every_seed_and_reports(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--seeds", "0,3", "--max_steps", "8") == 0
    fit, test, *others = calls()
    assert [(entry["stage"], entry["seed"]) for entry in others] == [("fit", 3), ("test", 3)]
    assert fit["args"] == [
        *("--config", "my_experiment.yaml", "--max_steps", "8"),
        *("--seed_everything", "0", "--run.name", "my_experiment-seed0", "--ckpt_path", "last"),
    ]
    assert test["args"] == ["--config", "runs/my_experiment-seed0/config.yaml", "--ckpt_path", "last"]
    assert (fit["gpu"], fit["group"]) == (None, "my_experiment")
    assert "0.500 ± 0.000 (2)" in Path("runs/my_experiment-report/tables.md").read_text(encoding="utf-8")
    said = capsys.readouterr().out.splitlines()
    assert {"seed 3: fit (2 of 2)", "seed 3: test (2 of 2)", "seed 3: done"} <= {*said}

    assert run("--seeds", "0,3,4", "--max_steps", "8") == 0  # finished seeds are not rerun
    assert stages() == [("fit", 4), ("test", 4)]
    assert "0.500 ± 0.000 (3)" in Path("runs/my_experiment-report/tables.md").read_text(encoding="utf-8")

    assert run("--seeds", "0", "--max_steps", "9") == 0  # another configuration is another matter
    assert stages() == [("fit", 0), ("test", 0)]
    assert run("--seeds", "0", "--run.name", "other", "--output", "there") == 0
    assert Path("runs/other-seed0/metrics").is_dir()
    assert Path("there/report.html").is_file()


def test_options_of_test_go_to_test(run: Run) -> None:
    own = ["--protocol", "genesisv2", "--fid.num_images=5"]
    assert run("--seeds", "0", *own, "--max_steps", "8") == 0
    fit, test = calls()
    assert fit["args"][:4] == ["--config", "my_experiment.yaml", "--max_steps", "8"]
    assert "--protocol" not in fit["args"]
    assert test["args"][2:] == [*own, "--ckpt_path", "last"]
    assert run("--seeds", "0", "--max_steps", "8") == 0  # tested otherwise: it is done again
    assert stages() == [("fit", 0), ("test", 0)]


def test_a_file_in_a_seeds_place_does_not_keep_the_others(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    Path("runs/my_experiment-seed1").touch()
    assert run("--seeds", "0,1,2") == 1
    assert stages() == [("fit", 0), ("test", 0), ("fit", 2), ("test", 2)]
    assert "seed 1: runs/my_experiment-seed1: File exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "behaviour", "reason"),
    [
        ("fit", "2", "fit left with exit code 2"),
        ("fit", "kill", "fit was killed by SIGKILL"),
        ("test", "1", "test left with exit code 1"),
    ],
)
def test_a_seed_that_fails_does_not_keep_the_others(
    run: Run,
    stage: str,
    behaviour: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"STUB_{stage}_1", behaviour)
    assert run("--seeds", "0,1,2") == 1
    done = [
        ("fit", 0),
        ("test", 0),
        ("fit", 1),
        *([("test", 1)] if stage == "test" else []),
        ("fit", 2),
        ("test", 2),
    ]
    assert stages() == done
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"lightning-genesis: sweep: 2 of 3 seeds done; seed 1: {reason}; the same command tries again"
    )
    assert "0.500 ± 0.000 (2)" in Path("runs/my_experiment-report/tables.md").read_text(encoding="utf-8")

    monkeypatch.delenv(f"STUB_{stage}_1")
    assert run("--seeds", "0,1,2") == 0  # where it failed, and nothing else
    assert stages() == [("fit", 1), ("test", 1)][0 if stage == "fit" else 1 :]


def test_one_seed_at_a_time_on_each_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_fit_0", "meet")
    monkeypatch.setenv("STUB_fit_1", "meet")  # each waits for the other: they are at work side by side
    assert run("--seeds", "0,1,2,3,4", "--gpus", "2,MIG-5") == 0
    entries = [json.loads(line) for line in Path("calls.jsonl").read_text(encoding="utf-8").splitlines()]
    for gpu in ("2", "MIG-5"):
        events = [entry["event"] for entry in entries if entry["gpu"] == gpu]
        assert events == ["start", "end"] * (len(events) // 2)
        assert len(events) >= 4
    assert {entry["seed"] for entry in entries} == set(range(5))
    assert Path("runs/my_experiment-seed0/output.txt").is_file()


# ---------------------------------------------------------------- values


def test_every_value_with_every_seed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole chart of a seed first; folders are named by the values; the report draws a chart."""
    assert run("--seeds", "0,1", "--model.std", "0.5,0.7") == 0
    names = [f"my_experiment-std={std}-seed{seed}" for seed in (0, 1) for std in ("0.5", "0.7")]
    fits = [entry["args"] for entry in calls() if entry["stage"] == "fit"]
    assert [args[args.index("--run.name") + 1] for args in fits] == names
    assert fits[1][:4] == ["--config", "my_experiment.yaml", "--model.std", "0.7"]
    assert "std=0.7, seed 1: done" in capsys.readouterr().out
    state = json.loads(Path("runs", names[1], "sweep.json").read_text(encoding="utf-8"))
    assert (state["sweep"], state["values"]) == ("my_experiment", {"model.std": "0.7"})

    assert run("--seeds", "0,1", "--model.std", "0.5,0.6,0.7") == 0  # a value more: only its runs are done
    assert {entry["args"][3] for entry in calls() if entry["stage"] == "fit"} == {"0.6"}


def test_a_run_that_fails_is_named_by_its_values(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_fit_1", "3")
    Path("values.yaml").write_text("- {model.std: 0.5}\n- {model.std: 0.7}\n")
    assert run("--seeds", "0,1", "--values", "values.yaml") == 1
    told = "sweep: 2 of 4 runs done; std=0.5, seed 1: fit left with exit code 3; std=0.7, seed 1: fit left"
    assert told in capsys.readouterr().err


def test_runs_side_by_side_without_gpus(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_fit_0", "meet")  # each waits for the other
    assert run("--seeds", "0", "--jobs", "2", "--model.std", "0.5,0.7") == 0
    assert {entry["gpu"] for entry in calls()} == {None}
    assert Path("runs/my_experiment-std=0.5-seed0/output.txt").is_file()


SRUN = """#!/bin/sh
while [ "$1" != lightning-genesis ]; do shift; done
shift 2
exec "$PYTHON" - "$@" <<'END'
import json, os, sys
with open("srun.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(int(os.environ.get("CODE", "0")))
END
"""


def test_an_array_of_jobs(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script, run by a shell with stand-ins for `srun` and `scontrol`, does what the sweep would."""
    arguments = ["--seeds", "0,1", "--model.std", "0.5,0.7", "--model.x", "{a: 1}"]
    assert run(*arguments, "--slurm", "array.sbatch", "--jobs", "2") == 0
    assert not Path("runs").exists()
    script = Path("array.sbatch").read_text(encoding="utf-8")
    assert "#SBATCH --array=0-3%2\n" in script
    assert run(*arguments, "--slurm", "array.sbatch") == 2, "what someone may have changed is kept"

    (tmp_path / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": '#!/bin/sh\necho "$@" >> scontrol.txt\n'}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        **os.environ,
        **{"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable},
        **{"SLURM_CPUS_PER_TASK": "8", "SLURM_ARRAY_JOB_ID": "77"},
    }

    def submit(task: int, code: int) -> int:
        own = {"SLURM_ARRAY_TASK_ID": str(task), "CODE": str(code)}
        return subprocess.run(["bash", "array.sbatch"], env={**environment, **own}, check=False).returncode

    assert [submit(task, 0) for task in range(4)] == [0] * 4
    assert (submit(2, 1), Path("scontrol.txt").exists()) == (1, False)
    assert submit(2, 75) == 75
    assert Path("scontrol.txt").read_text(encoding="utf-8") == "requeue 77_2\n"
    lines = [json.loads(line) for line in Path("srun.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines[:4]:
        assert main(["sweep", *line]) == 0
        assert not Path("runs/my_experiment-report").exists()
    assert len(calls()) == 8
    assert len({folder.name for folder in Path("runs").iterdir()}) == 4
    assert run(*arguments) == 0
    assert calls() == []
    assert Path("runs/my_experiment-report/report.html").is_file()


def test_agents_of_a_wandb_sweep(tmp_path: Path) -> None:
    """Each task of the array is one agent for one run."""
    for name in ("srun", "wandb"):
        last = 'while [ "$1" != wandb ]; do shift; done; exec "$@"' if name == "srun" else 'echo "$@"'
        (tmp_path / name).write_text(f"#!/bin/sh\n{last}\n")
        (tmp_path / name).chmod(0o755)
    script = ROOT / "experiments" / "slurm" / "agents.sbatch"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "8"}
    task = {**environment, "SLURM_ARRAY_TASK_ID": "1"}

    def submit(own: dict[str, str], *words: str) -> tuple[int, str]:
        command = ["bash", str(script), *words]
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert submit(task, "me/project/sweep") == (0, "agent --count 1 me/project/sweep\n")
    assert submit(task)[0] != 0
    assert submit(environment, "me/project/sweep")[0] != 0


# ---------------------------------------------------------------- signals


def when_waiting(*numbers: int, seed: int = 0) -> threading.Thread:
    """Sends signals to this process once a seed is being trained, each after the one before was heard."""
    folder = Path(f"runs/my_experiment-seed{seed}").resolve()

    def send() -> None:
        deadline = time.monotonic() + TIMEOUT
        for number, mark in zip(numbers, ("waiting", "heard"), strict=False):
            while not (folder / mark).exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("number", "stage"),
    [(signal.SIGINT, "fit"), (signal.SIGTERM, "fit"), (signal.SIGUSR1, "fit"), (signal.SIGTERM, "test")],
)
def test_a_signal_stops_the_processes_and_the_same_command_goes_on(
    run: Run,
    number: signal.Signals,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setenv(f"STUB_{stage}_0", "wait")
    thread = when_waiting(number)
    assert run("--seeds", "0,1") == 75
    thread.join()
    assert signal.getsignal(number) == before
    assert len(calls("end")) == (1 if stage == "fit" else 2)  # it was given the time to save
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"lightning-genesis: sweep: {number.name}: 0 of 2 seeds done; the same command goes on"
    monkeypatch.delenv(f"STUB_{stage}_0")
    assert run("--seeds", "0,1") == 0
    assert stages() == [*([("fit", 0)] if stage == "fit" else []), ("test", 0), ("fit", 1), ("test", 1)]


def test_a_second_signal_does_not_wait(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_fit_0", "deaf")
    thread = when_waiting(signal.SIGINT, signal.SIGINT)
    assert run("--seeds", "0") == 75
    thread.join()
    assert calls("end") == [], "it was killed"


def test_a_run_that_someone_else_stops_is_not_a_failure(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_fit_0", "75")
    assert run("--seeds", "0,1") == 75
    assert stages() == [("fit", 0), ("fit", 1), ("test", 1)]
    (line,) = capsys.readouterr().err.splitlines()
    told = "sweep: a signal to a run: 1 of 2 seeds done; the same command goes on"
    assert line == f"lightning-genesis: {told}"
    assert "0.500 (1)" in Path("runs/my_experiment-report/tables.md").read_text(
        encoding="utf-8"
    )  # of what is done


def test_no_report_where_nothing_is_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_fit_0", "75")
    assert run("--seeds", "0") == 75
    assert not Path("runs/my_experiment-report").exists()


def test_two_sweeps_do_not_share_a_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/my_experiment-seed0")
    folder.mkdir(parents=True)
    with open(folder / "sweep.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run("--seeds", "0,1") == 1
    assert stages() == [("fit", 1), ("test", 1)]
    assert f"seed 0: {folder} is in use by another sweep's process" in capsys.readouterr().err


@pytest.mark.parametrize(
    "state", ["", "[]", "{}", '{"config_sha256": 1, "finished": 3}', '{"finished": ["test"]}']
)
def test_a_damaged_state_is_no_state(run: Run, state: str) -> None:
    folder = make_run(Path("runs"), "my_experiment", 0)
    (folder / "sweep.json").write_text(state)
    assert run("--seeds", "0") == 0
    assert stages() == [("fit", 0), ("test", 0)]


def test_a_copied_run_is_not_finished_under_another_seed(run: Run) -> None:
    assert run("--seeds", "0") == 0
    shutil.copytree("runs/my_experiment-seed0", "runs/my_experiment-seed1")
    calls()
    assert run("--seeds", "0,1") == 0
    assert stages() == [("fit", 1), ("test", 1)]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "sweep: the following arguments are required: --seeds"),
        (["--seeds", "0,x"], "sweep: argument --seeds: '0,x', expected different numbers with commas"),
        (["--seeds", "0,"], "sweep: argument --seeds: '0,', expected different numbers"),
        (["--seeds", "1,1"], "sweep: argument --seeds: '1,1', expected different numbers"),
        (["--seeds", "1,01"], "sweep: argument --seeds: '1,01', expected different numbers"),
        (["--seeds", "0", "--gpus", "0,"], "sweep: argument --gpus: '0,', expected different names"),
        (["--seeds", "0", "--seed_everything=4"], "sweep: --seed_everything is set by the sweep itself"),
        (["--seeds", "0", "--ckpt_path", "best"], "sweep: --ckpt_path is set by the sweep itself"),
        (["--seeds", "0", "--fast", "1"], "sweep: a fast_dev_run leaves nothing to test"),
        (["--seeds", "0", "--task", "1"], "sweep: --task 1, expected 0 to 0"),
        (["--seeds", "0", "--wrong", "1"], "no option 'wrong'"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(
    run: Run, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lightning-genesis: error: {message}")
    assert calls() == []
    assert not Path("runs").exists()


# ---------------------------------------------------------------- the real command


@pytest.mark.slow
def test_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    arguments = ["sweep", "--config", "tiny.yaml", "--seeds", "0,1", "--trainer.enable_progress_bar", "false"]
    assert main(arguments) == 0
    tables = Path("runs/tiny-report/tables.md").read_text(encoding="utf-8")
    assert "(2)" in tables
    weights = [path.stat().st_mtime_ns for path in sorted(Path("runs").glob("*/checkpoints/last.ckpt"))]
    assert len(weights) == 2
    assert main(arguments) == 0
    assert [
        path.stat().st_mtime_ns for path in sorted(Path("runs").glob("*/checkpoints/last.ckpt"))
    ] == weights
    assert Path("runs/tiny-report/tables.md").read_text(encoding="utf-8") == tables


# ---------------------------------------------------------------- sweeps of W&B


def drawn(parameter: dict[str, Any]) -> list[Any]:
    """Values that W&B may choose."""
    return parameter.get("values") or [parameter["min"], parameter["max"]]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweeps_of_wandb_parse(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B's own functions make the command line; the command takes it, and every value arrives."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    monkeypatch.chdir(ROOT)
    assert content["program"] == content["command"][0] == "lightning-genesis"
    for last in (False, True):
        chosen = {name: {"value": drawn(entry)[-last]} for name, entry in content["parameters"].items()}
        arguments = create_sweep_command_args({"args": chosen})
        words = create_sweep_command(list(content["command"]))
        words = [part for word in words for part in (arguments["args"] if word == "${args}" else [word])]
        assert words[1] == "fit"
        with pytest.raises(SystemExit) as stopped:
            main([*words[1:], "--print_config"])
        assert stopped.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        for name, entry in chosen.items():
            found: Any = config
            for key in name.split("."):
                found = found[key]
            assert found == entry["value"], name
    assert content["metric"]["name"] in logged_in_validation(config)


def logged_in_validation(config: dict[str, Any]) -> set[str]:
    """What a model of this configuration logs of two images with masks."""
    data, (_, _, name) = build_data(config["data"]), config["model"]["class_path"].rpartition(".")
    options = config["model"]["init_args"] | {key: getattr(data, key) for key in LINKED}
    options.pop("objective", None)  # of no account here
    model: Any = getattr(models, name)(**options).eval()
    names: list[str] = []
    model.log = lambda name, *args, **kwargs: names.append(name)
    size = model.image_size
    batch = {
        "image": torch.rand(2, 3, size, size),
        "index": torch.arange(2),
        "segmentation": torch.randint(3, (2, size, size)),
    }
    with torch.no_grad():
        model.validation_step(batch, 0)
    model.on_validation_epoch_end()
    return set(names)


def test_runs_of_a_wandb_sweep_have_folders_and_ids_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_genesis.commands.fit import ExperimentCLI

    class Named(ExperimentCLI):
        """Stops once the run has its name."""

        def _find_checkpoint(self, config: Any) -> None:
            raise InterruptedError(config.run.name)

    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.raises(InterruptedError, match=r"^tiny-seed5$"):
        Named(["fit", "--config=tiny.yaml", "--seed_everything=5"])
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "run7")
    with pytest.raises(InterruptedError, match=r"^tiny-run7-seed5$"):
        Named(["fit", "--config=tiny.yaml", "--seed_everything=5"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    make_wandb_logger(tmp_path / "run", "name")
    assert (tmp_path / "run" / "wandb-id.txt").read_text(encoding="utf-8").split()[0] == "run7"
