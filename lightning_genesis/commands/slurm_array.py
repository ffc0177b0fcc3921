"""A script for sbatch that does a sweep as an array of jobs, a run and a GPU each."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_genesis.storage.files import replacing

_SCRIPT = r"""#!/bin/bash
# @COUNT@ runs of the sweep @NAME@, one task and one GPU each; written by `lightning-genesis sweep --slurm`.
#
#   sbatch @FILE@
#
# Options of sbatch overrule those below: sbatch --time=24:00:00 --partition=gpu --array=3,5 @FILE@
# Prepare the data first. When all tasks are done, the sweep itself finds nothing to do and writes the report:
#
#   @COMMAND@
#
#SBATCH --job-name=@JOB@
#SBATCH --array=0-@LAST@@LIMIT@
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
# To the processes, 180 s before the time limit: the run finishes its step, saves, and leaves with 75.
#SBATCH --signal=USR1@180

: "${SLURM_ARRAY_TASK_ID:?start this with sbatch}"

# Cancelled or preempted: SLURM itself decides whether the task comes back.
trap 'exit 143' TERM

srun --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    @COMMAND@ --task "$SLURM_ARRAY_TASK_ID"
code=$?

if [ "$code" -eq 75 ]; then # EX_TEMPFAIL: saved, run me again
    echo "requeueing task $SLURM_ARRAY_TASK_ID of job $SLURM_ARRAY_JOB_ID"
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" || exit 1
fi
exit "$code"
"""


def write_array(file: Path, name: str, count: int, arguments: Sequence[str], limit: int | None) -> None:
    """Writes the script, and says how to submit it.

    Args:
        file: to write; it should not be there yet.
        name: of the sweep.
        count: runs.
        arguments: of the sweep, as given.
        limit: tasks at a time; no limit of ours if None.
    """
    command = shlex.join(["lightning-genesis", "sweep", *_without_slurm(arguments)])
    text = _SCRIPT
    for mark, value in {
        "COUNT": str(count),
        "NAME": name,
        "FILE": shlex.quote(str(file)),
        "COMMAND": command,
        "JOB": "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name),
        "LAST": str(count - 1),
        "LIMIT": f"%{limit}" if limit else "",
    }.items():
        text = text.replace(f"@{mark}@", value)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{count} runs -> {file}: sbatch {shlex.quote(str(file))}")
    print(f"when they are done: {command}")


def _without_slurm(arguments: Sequence[str]) -> list[str]:
    """The sweep's arguments but `--slurm` and `--jobs`, which are the array's business."""
    kept: list[str] = []
    remaining = iter(arguments)
    for word in remaining:
        if word in ("--slurm", "--jobs"):
            next(remaining, None)
        elif word.partition("=")[0] not in ("--slurm", "--jobs"):
            kept.append(word)
    return kept
