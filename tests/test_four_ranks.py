"""Four ranks, as `torchrun` and as a SLURM job of two nodes start them: the run of one process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.ranks.command import ROOT, TIMEOUT, records, run
from tests.test_ranks import TOLERANCE, assert_moved, assert_ranks_equal, compare, descent, images_of_step
from tests.test_slurm import SCRIPT, environment

STEPS = 4
# Two tasks on each of two nodes, which are all this machine.
TASKS = """
while [ "${1#--}" != "$1" ]; do shift; done
export MASTER_ADDR=127.0.0.1 MASTER_PORT=%d
for task in 3 2 1; do
  SLURM_PROCID=$task SLURM_NODEID=$((task / 2)) SLURM_LOCALID=$((task %% 2)) "$@" &
done
SLURM_PROCID=0 SLURM_NODEID=0 SLURM_LOCALID=0 "$@"; code=$?
for job in $(jobs -p); do wait "$job" || code=$?; done
exit $code
"""


def by_torchrun(folder: Path) -> tuple[list[str], dict[str, str]]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    words = [sys.executable, *torchrun, "-m", "lightning_genesis.cli", "fit", "--trainer.strategy", "ddp"]
    return words, {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def by_slurm(folder: Path) -> tuple[list[str], dict[str, str]]:
    srun = TASKS % (20_000 + os.getpid() % 10_000)
    command = f'exec {sys.executable} -m lightning_genesis.cli "$@"'
    programs = environment(folder, srun=srun, lightning_genesis=command)
    return ["bash", str(SCRIPT)], {**programs, "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the run of one process."""
    folder = tmp_path_factory.mktemp("four")
    run(folder, "fit", "one", descent("GenesisV2", STEPS))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("start", [by_torchrun, by_slurm])
def test_four_ranks_train_like_one(start: Any, single: Path) -> None:
    config: Mapping[str, Any] = descent("GenesisV2", STEPS)
    (single / "four.yaml").write_text(yaml.safe_dump(config))
    words, variables = start(single)
    words += ["--config", "four.yaml", "--run.name", start.__name__]
    done = subprocess.run(words, cwd=single, env=variables, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = single / "runs"
    (alone,), several = records(runs / "one", "fit", 1), records(runs / start.__name__, "fit", 4)
    for step in range(STEPS):
        assert [len(record["seen"][step]) for record in several] == [1] * 4
        assert sorted(images_of_step(several, step)) == sorted(alone["seen"][step])
    assert max(compare(runs, "one", start.__name__, 4, STEPS).values()) < TOLERANCE
    assert_moved(alone)
    assert_ranks_equal(several)
    assert torch.equal(several[3]["final"]["objective.beta"], several[0]["final"]["objective.beta"])
