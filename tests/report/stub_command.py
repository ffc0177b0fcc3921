"""Stands in for `lightning-genesis fit` and `test` in tests of the sweep: quick, and it does as it is told.

`STUB_fit_1=3` in the environment makes `fit` of seed 1 leave with exit code 3; `kill` kills it; with `wait`
it goes on until SIGTERM or SIGINT and leaves with 75; with `deaf` until it is killed; with `meet` until
another run is at work too. `test` leaves a copy of `result.json` with the seed of the run.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

CALLS = Path("calls.jsonl")


def main(stage: str, *args: str) -> int:
    options = dict(zip(args[::2], args[1::2], strict=False))
    if stage == "configurations":
        print(json.dumps([read(*line[1:]) for line in json.load(sys.stdin)]))
        return 0
    folder = Path("runs", options["--run.name"]) if stage == "fit" else Path(options["--config"]).parent
    experiment, _, seed = folder.name.rpartition("-seed")
    note(stage, seed, "start", args)
    code = leave(os.environ.get(f"STUB_{stage}_{seed}", "0"), folder)
    if code == 0 and stage == "test":
        result = json.loads(Path("result.json").read_text())
        result |= {"experiment": experiment, "run": folder.name, "seed": int(seed)}
        (folder / "metrics").mkdir(exist_ok=True)
        (folder / "metrics" / "test.json").write_text(json.dumps(result))
    note(stage, seed, "end", args)
    return code


def read(*args: str) -> dict[str, str]:
    if "--wrong" in args:
        return {"error": "lightning-genesis: error: no option 'wrong'"}
    options = dict(zip(args[::2], args[1::2], strict=False))
    run = {"name": options.get("--run.name"), "root": "runs"}
    trainer = {"fast_dev_run": options.get("--fast") == "1", "max_steps": options.get("--max_steps")}
    model = {"class_path": "models.Genesis", "std": options.get("--model.std")}
    return {"config": json.dumps({"run": run, "trainer": trainer, "model": model})}


def leave(behaviour: str, folder: Path) -> int:
    if behaviour.isdecimal():
        return int(behaviour)
    if behaviour == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    received: list[int] = []

    def hear(number: int, frame: object) -> None:
        received.append(number)
        (folder / "heard").touch()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hear)
    (folder / "waiting").touch()
    for _ in range(60_000):  # ten minutes: a busy machine is no failure
        time.sleep(0.01)
        if received and behaviour == "wait":
            return 75
        if behaviour == "meet" and len(list(Path("runs").glob("*/waiting"))) > 1:
            return 0
    return 9


def note(stage: str, seed: str, event: str, args: tuple[str, ...]) -> None:
    names = {"gpu": "CUDA_VISIBLE_DEVICES", "group": "WANDB_RUN_GROUP"}
    told = {name: os.environ.get(variable) for name, variable in names.items()}
    with open(CALLS, "a") as file:  # a short line is not torn
        file.write(
            json.dumps({"stage": stage, "seed": int(seed), "event": event, "args": args, **told}) + "\n"
        )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
