"""Files that nobody vouches for: bounds of every reader, and a small draw of `benchmarks/hostile.py`."""

import importlib
import json
import os
import random
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_genesis.commands.report import report
from lightning_genesis.errors import CheckpointError, ConfigurationError, Incomplete
from lightning_genesis.runs.loading import load, load_model
from lightning_genesis.runs.results import Result, write_result
from lightning_genesis.storage.checkpoint import read_checkpoint, write_checkpoint
from lightning_genesis.storage.json_file import read_json
from lightning_genesis.storage.text import shown
from lightning_genesis.storage.yaml_file import read_yaml

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
GROUPS = ("checkpoints", "weights", "yaml", "json", "logs", "pictures", "arrays", "reports")


@pytest.mark.parametrize("group", GROUPS)
def test_a_draw_of_the_corpora(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case is refused in one line or right; other draws than the published run's."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    hostile = importlib.import_module("hostile")
    monkeypatch.chdir(tmp_path)
    cases = hostile.GROUPS[group][0](random.Random(f"test {group}"), tmp_path)
    number = 12 if group == "reports" else 60
    found = [hostile.outcome(next(cases), tmp_path) for _ in range(number)]
    assert set(found) <= {"refused", "right"}
    assert group == "reports" or found.count("refused") > number / 5
    sys.modules.pop("hostile"), sys.modules.pop("hostile_files")


def test_the_corpora_tell_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that falls, runs code or says two lines is seen."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    hostile = importlib.import_module("hostile")

    def says_two_lines() -> None:
        raise ConfigurationError("a\nb")

    assert hostile.outcome(lambda: 1 / 0, tmp_path).startswith("ZeroDivisionError")
    assert hostile.outcome(says_two_lines, tmp_path).startswith("several lines")
    assert hostile.outcome((tmp_path / "marker").touch, tmp_path) == "code in the file was run"
    assert hostile.outcome((tmp_path / "x.tmp").touch, tmp_path).startswith("left behind")


# ---------------------------------------------------------------- YAML and JSON


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [*a]", "refers to itself"),
        ("a: &a [1, 2]\n" + "".join(f"b{n}: &b{n} [{'*a, ' * 9}*a]\n" for n in range(3)) + "c: [*b0]", None),
        ("\n".join(f"{n * (2**61 - 1)}: 0" for n in range(9_000)), "keys that are no text"),
        ("a: &a {b: 1}\nc: {<<: [" + ", ".join(["*a"] * 5000) + "]}", "merges more than 100"),
        ("a: " + "1:" * 50_000 + "1", "a number of more than 1000 characters"),
        ("a: 0x" + "f" * 50_000, "a number of more than 1000 characters"),
        ("a: !!timestamp x", "not readable as YAML"),
        ("a: !!bool x", "not readable as YAML"),
        ("a: x" * 200_000, "more than 300,000 bytes"),
        ("[" * 50_000, "not readable as YAML"),
    ],
)
def test_bounds_of_yaml(tmp_path: Path, text: str, reason: str | None) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    if reason is None:
        assert len(read_yaml(path)["b2"]) == 10
        return
    with pytest.raises(ConfigurationError, match=reason) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"\\ud800"', "characters that cannot be shown"),
        ('{"\\u001b[2J": 1}', "characters that cannot be shown"),
        ("1" * 400, "a whole number of 1326 bits"),
        ("[" * 60 + "]" * 60, "more than 50 levels"),
        ("[" * 100_000, "not readable as JSON"),
        ("{", "not readable as JSON"),
    ],
)
def test_bounds_of_json(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        read_json(path)
    path.write_text('{"a": ["é", 1.5, null, true]}')
    assert read_json(path) == {"a": ["é", 1.5, None, True]}


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ConfigurationError, match="not a regular file"):
            read(tmp_path / name)


def test_text_for_a_terminal() -> None:
    assert shown("é a\n") == "é a\n"
    assert shown("\x1b[2Ja\ud800\x9b") == "\\x1b[2Ja\\ud800\\x9b"


# ---------------------------------------------------------------- checkpoints and weights


def with_pickle(path: Path, content: bytes) -> None:
    torch.save({"a": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as source:
        entries = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, body in entries.items():
            target.writestr(name, content if name.endswith("data.pkl") else body)


def encoded(text: str, codec: str, times: int = 1) -> bytes:
    def unicode(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    call = b"c_codecs\nencode\nq\x00" + unicode(text) + b"q\x01" + unicode(codec) + b"\x86q\x02R"
    return b"\x80\x02](" + call + b"h\x00h\x02R" * (times - 1) + b"e."


@pytest.mark.parametrize("codec", ["punycode", "PunyCode", "idna", "zip", "utf-16", "unicode escape"])
def test_bytes_are_stored_in_latin1_alone(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.ckpt"
    with_pickle(path, encoded("é" * 4000, codec))
    with pytest.raises(CheckpointError, match="names the encoding"):
        read_checkpoint(path)


def test_bytes_survive(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    contents: dict[str, Any] = {"state_dict": {}, "model_class": "A", "hyper_parameters": {}}
    for value in (b"abc", bytes(range(256))):
        write_checkpoint(path, {**contents, "callbacks": {"mine": value}})
        assert read_checkpoint(path)["callbacks"] == {"mine": value}
    with_pickle(path, encoded("é" * 1_000_000, "latin1", 5000))
    with pytest.raises(CheckpointError, match="out of text"):
        read_checkpoint(path)


SIZES = {"num_slots": 3, "image_size": 32, "feature_dim": 8, "latent_dim": 8}


def file_of(path: Path, hyper_parameters: dict[str, Any], data: dict[str, Any] | None = None) -> Path:
    about = {"model_class": "GenesisV2", "hyper_parameters": SIZES | hyper_parameters}
    about["data"] = data or {"class_path": "data_modules.MultiDSprites", "init_args": {"image_size": 32}}
    save_file({"weight": torch.zeros(2)}, path, {"lightning_genesis": json.dumps(about)})
    return path


@pytest.mark.parametrize(
    "values",
    [
        {"num_slots": 10**9},
        {"num_slots": 10**400},
        {"image_size": 30_000},
        {"image_size": 2**20},
        {"feature_dim": 30_000},
        {"decoder_stages": 10**6},
        {"num_slots": -1},
        {"feature_dim": "x"},
        {"latent_dim": [8] * 100},
        {"objective": {"class_path": "os.system", "init_args": {}}},
    ],
)
def test_hyperparameters_of_a_small_file_make_no_large_model(tmp_path: Path, values: dict[str, Any]) -> None:
    path = file_of(tmp_path / "a.safetensors", values)
    with pytest.raises((CheckpointError, ConfigurationError)) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        {"class_path": "antigravity.Fly", "init_args": {}},
        {"class_path": "data_modules.MultiDSprites", "init_args": {"image_size": "x"}},
        {"class_path": "data_modules.MultiDSprites", "init_args": {"train_size": [1]}},
        {"class_path": "data_modules.MultiDSprites", "init_args": {"nope": 1}},
        {"class_path": "data_modules.MultiDSprites", "init_args": [1]},
    ],
)
def test_a_file_of_weights_imports_nothing(tmp_path: Path, data: dict[str, Any]) -> None:
    from lightning_genesis.runs.loading import _data_of_weights

    path = file_of(tmp_path / "a.safetensors", {}, data)
    with pytest.raises((CheckpointError, ConfigurationError)):
        load(path)
    with pytest.raises((CheckpointError, ConfigurationError), match=r"a\.safetensors"):
        _data_of_weights(data, path)
    assert "antigravity" not in sys.modules


# ---------------------------------------------------------------- the report


def a_run(folder: Path, metrics: dict[str, Any], **fields: Any) -> Path:
    about = {"protocol": "genesisv2", "seed": 0} | fields
    result = Result("GenesisV2", folder.name, folder.name, "gqn", False, "test", 5, metrics, **about)
    write_result(folder, "test", result)
    (folder / "metrics.csv").write_text("step,train/loss\n0,3\n100,2\n")
    return folder


def spoil(run: Path, key: str, value: str) -> None:
    file = next((run / "metrics").glob("*.json"))
    contents = json.loads(file.read_text())
    contents[key] = "SPOILED"
    file.write_text(json.dumps(contents).replace('"SPOILED"', value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_images", "1" * 400),
        ("model", '"\\ud800"'),
        ("dataset", '"\\u001b[2J"'),
        ("metrics", '{"ari_fg": 1e308}'),
        ("metrics", '{"ari_fg": NaN}'),
        ("metrics", '{"ari_fg": ' + "1" * 400 + "}"),
        ("deviations", "[3]"),
        ("options", "[" * 99 + "]" * 99),
        ("experiment", '"' + "a" * 5000 + '"'),
    ],
)
def test_one_bad_run_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    good, bad = a_run(tmp_path / "good", {"ari_fg": 0.5}), a_run(tmp_path / "bad", {"ari_fg": 0.25})
    spoil(bad, key, value)
    with pytest.raises(Incomplete):
        report([good, bad], tmp_path / "out")
    assert "0.500" in (tmp_path / "out/tables.md").read_text()
    told = capsys.readouterr().err
    assert str(bad) in told
    assert "\x1b" not in told
    assert max(map(len, told.splitlines())) < 1000


def test_curves_of_extreme_values(tmp_path: Path) -> None:
    cells = ("1e308", "-1e308", "1e-320", "9e99", "-9e99", "0", "nan", "1" * 400)
    for number, first in enumerate(cells):
        run = a_run(tmp_path / f"r{number}", {"ari_fg": 0.5})
        rows = [f"{n},{first},{second}" for n, second in enumerate(cells)]
        (run / "metrics.csv").write_text("\n".join(["step,train/loss,geco/a/beta", *rows]))
        report([run], tmp_path / "out")
        page = (tmp_path / "out/report.html").read_text()
        assert "<svg" in page
        assert "nan" not in page[page.index("<svg") :]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", {"ari_fg": 0.5}).rename(tmp_path / os.fsdecode(b"\xff\x1b[2J"))
    report([run], tmp_path / "out")
    page = (tmp_path / "out/report.html").read_bytes()
    assert b"\\udcff" in page
    assert b"\x1b" not in page


def test_formulas_are_text_in_the_table(tmp_path: Path) -> None:
    import csv

    run = a_run(tmp_path / "=HYPERLINK(1)", {"ari_fg": 0.5, "-cmd": -3.0}, seed=3)
    report([run], tmp_path / "out")
    with open(tmp_path / "out/tables.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"'=HYPERLINK(1)"}
    found = {row["metric"]: float(row["mean"]) for row in rows}
    assert found == {"ari_fg": 0.5, "'-cmd": -3.0}


def test_pictures_of_too_many_pixels(tmp_path: Path) -> None:
    from PIL import Image

    run = a_run(tmp_path / "a", {"ari_fg": 0.5})
    (run / "pictures").mkdir()
    Image.fromarray(np.zeros((9000, 9000), dtype=np.uint8)).save(run / "pictures/samples-1.png")
    with pytest.raises(Incomplete, match="is written"):
        report([run], tmp_path / "out")
    assert "too many" in (tmp_path / "out/tables.md").read_text()
