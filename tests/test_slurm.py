"""The batch script, without SLURM: what it runs, and when it asks to be run again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.ranks.command import ROOT, TIMEOUT, experiment, rows
from tests.ranks.tiny import tiny

SCRIPT = ROOT / "experiments/slurm/train.sbatch"
JOB = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NAME": "lightning-genesis",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_CPUS_PER_TASK": "1",
}
# Two nodes that are both this machine.
TWO_NODES = """
while [ "${1#--}" != "$1" ]; do shift; done
export MASTER_ADDR=127.0.0.1 MASTER_PORT=%d SLURM_LOCALID=0
SLURM_PROCID=1 SLURM_NODEID=1 "$@" & second=$!
SLURM_PROCID=0 SLURM_NODEID=0 "$@" & first=$!
echo "$first $second" > tasks
wait $first; code=$?
wait $second; other=$?
exit $((code > other ? code : other))
"""


def environment(folder: Path, **programs: str) -> dict[str, str]:
    """A job's environment; the programs are shell scripts of that text."""
    (folder / "bin").mkdir(exist_ok=True)
    programs.setdefault("scontrol", 'echo "$@" >> requeued')
    for name, text in programs.items():
        program = folder / "bin" / name.replace("_", "-")
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, **JOB, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_script_is_valid() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    directives = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    for option in ("--signal=USR1@180", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {option}" in directives


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137, 138])
def test_only_75_is_run_again(code: int, tmp_path: Path) -> None:
    programs = environment(tmp_path, srun=f'printf "%s\\n" "$@" > arguments; exit {code}')
    words = ["bash", str(SCRIPT), "--config", "a b.yaml"]
    done = subprocess.run(words, cwd=tmp_path, env=programs, check=False, timeout=TIMEOUT)
    assert done.returncode == code
    assert (tmp_path / "requeued").exists() == (code == 75)
    if code == 75:
        assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    arguments = (tmp_path / "arguments").read_text().splitlines()
    command = arguments[arguments.index("lightning-genesis") :]
    assert command[:6] == ["lightning-genesis", "fit", "--config", "a b.yaml", "--ckpt_path", "last"]
    assert command[command.index("--trainer.num_nodes") + 1] == "2"
    assert command[command.index("--trainer.devices") + 1] == "1"


def test_cancelled_job_is_not_run_again(tmp_path: Path) -> None:
    programs = environment(tmp_path, srun="touch started; until [ -e go ]; do sleep 0.05; done; exit 75")
    process = subprocess.Popen(["bash", str(SCRIPT)], cwd=tmp_path, env=programs)
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert process.wait(timeout=TIMEOUT) == 143
    assert not (tmp_path / "requeued").exists()


def test_script_needs_slurm(tmp_path: Path) -> None:
    programs = environment(tmp_path, srun="exit 0")
    del programs["SLURM_JOB_ID"]
    done = subprocess.run(["bash", SCRIPT], cwd=tmp_path, env=programs, capture_output=True, text=True)
    assert done.returncode != 0
    assert "start this with sbatch" in done.stderr


def wait_for(path: Path, text: str = "") -> None:
    deadline = time.monotonic() + TIMEOUT / 2
    while not (path.is_file() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("hit", [0, 1])
def test_job_over_two_nodes_goes_on_after_its_time_limit(hit: int, tmp_path: Path) -> None:
    """The signal reaches all tasks in SLURM; here one of them, which is enough."""
    command = f'exec {sys.executable} -m lightning_genesis.cli "$@"'
    srun = TWO_NODES % (20_000 + os.getpid() % 10_000 + hit)
    programs = environment(tmp_path, srun=srun, lightning_genesis=command)
    config = experiment("GenesisV2", tiny("GenesisV2").options)
    config["trainer"].update(max_steps=4000, val_check_interval=4000)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    log = tmp_path / "log"
    words = ["bash", str(SCRIPT), "--config", "run.yaml", "--run.name", "run"]
    folder = tmp_path / "runs/run"
    with log.open("w") as file:
        process = subprocess.Popen(words, cwd=tmp_path, env=programs, stdout=file, stderr=file)
        try:
            wait_for(folder / "metrics.csv", "\n")
            os.kill(int((tmp_path / "tasks").read_text().split()[hit]), signal.SIGUSR1)
            assert process.wait(timeout=TIMEOUT) == 75, log.read_text()[-3000:]
            assert (tmp_path / "requeued").read_text() == "requeue 17\n"
            stopped = read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"]
            assert 0 < stopped < 4000
            # what SLURM does then
            args = ("--trainer.max_steps", str(stopped + 3))
            process = subprocess.Popen([*words, *args], cwd=tmp_path, env=programs, stdout=file, stderr=file)
            assert process.wait(timeout=TIMEOUT) == 0, log.read_text()[-3000:]
        finally:
            for task in (tmp_path / "tasks").read_text().split():
                if process.poll() is None:
                    os.kill(int(task), signal.SIGKILL)
            process.kill()
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == stopped + 3
    steps = [row["step"] for row in rows(folder / "metrics.csv", ("train/",))]
    assert steps == list(range(stopped + 3))
