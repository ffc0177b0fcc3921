"""Command lines that cannot work: each is answered by the line that stands beside it, and leaves nothing."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_genesis.cli import main
from lightning_genesis.commands.fit import ExperimentCLI
from tests.test_cli import TINY

LINES = Path(__file__).with_name("data") / "wrong_lines.yaml"
PAIRS = zip("abcdef", "bcdefg", strict=True)
LAUGHS = "a: &a [l, l, l, l, l, l, l, l, l]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in PAIRS
)
FILES = {
    "empty": "",
    "list": "[1, 2]",
    "broken": "a: [",
    "loop": "a: &a [*a]",
    "laughs": LAUGHS,
    "unknown": "modle: 3",
    "wrong_class": "model: Genesisv9",
    "tag": "a: !!python/object/apply:os.system ['touch marker']",
    "nan_key": ".nan: 3",
    "itself": "data: itself.yaml",
    "colliding": "\n".join(f"{number * (2**61 - 1)}: 0" for number in range(24_000)),
}


class Accepted(BaseException):
    """The command would start to work."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an experiment and files that are none; nobody has a GPU there."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    for name, text in FILES.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    os.mkfifo(folder / "pipe")

    def take(self: Any, subcommand: str) -> None:
        raise Accepted(subcommand)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(ExperimentCLI, "_run_subcommand", take)
        patch.setattr("torch.cuda.is_available", lambda: False)
        patch.setattr("torch.cuda.device_count", lambda: 0)
        yield folder


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_wrong_lines(folder: Path, capsys: pytest.CaptureFixture[str], half: int) -> None:
    """`...` in an expected line stands for anything. Nothing is made, in or beside the run's folder."""
    pairs = yaml.safe_load(LINES.read_text())
    assert len(pairs) >= 300
    pairs = pairs[half::2]
    before = {path.name for path in folder.iterdir()}
    wrong = []
    for line, expected in pairs:
        arguments = shlex.split(line)
        if not arguments[0].isalpha() or arguments == ["extra"]:
            arguments = ["fit", "--config", "tiny.yaml", "--run.name", "wrong", *arguments]
        try:
            code: object = main(arguments)
        except (Exception, SystemExit, Accepted) as error:
            code = repr(error)[:200]
        told = [row for row in capsys.readouterr().err.splitlines() if row.startswith("lightning-genesis: ")]
        pattern = "lightning-genesis: (error: )?" + ".*".join(map(re.escape, expected.split("...")))
        if code != 2 or len(told) != 1 or not re.fullmatch(pattern, told[0]):
            wrong.append(f"{line}\n    {code} {told}\n    {expected}")
        assert {path.name for path in folder.iterdir()} == before, line
    assert not wrong, "\n".join([f"{len(wrong)} of {len(pairs)}:", *wrong])


@pytest.mark.parametrize(
    "line",
    [
        "--trainer.limit_val_batches 0",
        "--trainer.num_sanity_val_steps -1",
        "--trainer.max_steps -1",
        "--trainer.devices 1",
        "--seed_everything 4294967295",
        "--model.objective FixedBeta --model.objective.beta 0",
        "--run.name a.b-c_d",
        "--model.compile default",
        "--trainer.gradient_clip_val 0",
    ],
)
def test_lines_at_the_edge(folder: Path, line: str) -> None:
    """What is odd, but does what it says."""
    with pytest.raises(Accepted):
        main(["fit", "--config", "tiny.yaml", *line.split()])


def test_a_configuration_may_hold_options_of_other_commands(folder: Path) -> None:
    """One file is of a run's whole life, so `fit` takes it with the protocol that `test` will need."""
    whole = {**TINY, "protocol": "genesisv2", "importance_samples": 3, "fid": {"num_images": 10}}
    (folder / "empty.yaml").write_text(yaml.safe_dump(whole))
    try:
        with pytest.raises(Accepted):
            main(["fit", "--config", "empty.yaml"])
    finally:
        (folder / "empty.yaml").write_text("")


# ---------------------------------------------------------------- a class in place of a file's


def options_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["fit", *arguments, "--print_config"])
    assert left.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


CHANGES = [
    (["--model", "SRI"], "model", "std", 0.7),
    (["--model.objective", "GECO"], "model.objective", "beta", 1.0),
    (["--data", "ImageFolder", "--data.folder", "f"], "data", "batch_size", 32),
    (["--config", "second.yaml"], "model", "std", 0.7),
]


@pytest.mark.parametrize(("arguments", "section", "name", "value"), CHANGES)
def test_a_changed_class_starts_from_its_own_defaults(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    section: str,
    name: str,
    value: object,
) -> None:
    objective = {"class_path": "lightning_genesis.objectives.FixedBeta", "init_args": {"beta": 0.01}}
    model = {**TINY["model"]["init_args"], "objective": objective, "std": 0.3}
    config = {**TINY, "model": {"class_path": "lightning_genesis.models.GenesisV2", "init_args": model}}
    try:
        (folder / "second.yaml").write_text("model: lightning_genesis.models.SRI")
        (folder / "tag.yaml").write_text(yaml.safe_dump(config))
        kept = options_of(capsys, "--config", "tag.yaml")
        assert kept["model"]["init_args"]["objective"]["init_args"]["beta"] == 0.01
        found: Any = options_of(capsys, "--config", "tag.yaml", *arguments)
        for part in section.split("."):
            found = found[part] if part in found else found["init_args"][part]
        assert found["init_args"][name] == value
    finally:
        (folder / "second.yaml").unlink(missing_ok=True)
        (folder / "tag.yaml").write_text(FILES["tag"])


# ---------------------------------------------------------------- code of the user's own

OWN = """
from pytorch_lightning import Callback
from lightning_genesis.models import GenesisV2


class Broken(GenesisV2):
    def __init__(self, **options):
        super().__init__(**options)
        {}["mine"]


class Falls(Callback):
    def __init__(self, ready: bool = False):
        raise ValueError("mine")
"""


@pytest.mark.parametrize("line", ["--model own_code.Broken", "--trainer.callbacks own_code.Falls"])
def test_errors_of_own_code_keep_their_traceback(folder: Path, line: str) -> None:
    (folder / "own_code.py").write_text(OWN)
    try:
        with pytest.raises(Exception, match="mine") as caught:
            main(["fit", "--config", "tiny.yaml", *line.split()])
    finally:
        (folder / "own_code.py").unlink()
    error: BaseException | None = caught.value
    files = set()
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            files.add(Path(trace.tb_frame.f_code.co_filename).name)
            trace = trace.tb_next
        error = error.__cause__
    assert "own_code.py" in files
