import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.runs.results import (
    Checkpoint,
    Result,
    read_result,
    read_results,
    versions,
    write_result,
)

RESULT = Result(
    model="GenesisV2",
    run="run-seed0",
    experiment="run",
    dataset="shapestacks",
    synthetic=True,
    split="test",
    num_images=320,
    metrics={"elbo": -7019.25, "ari_fg": 0.1 + 0.2},
    protocol="genesisv2",
    seed=3,
    checkpoint=Checkpoint("checkpoints/best.ckpt", "ab" * 32, 500_000),
    options={"fid": {"num_images": 10_000}},
    deviations=["data: synthetic"],
    rules={"source": "GENESIS-V2", "num_seeds": 3},
)


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = write_result(tmp_path, "test-genesisv2", RESULT)
    assert path.parent == tmp_path / "metrics"
    assert read_results(tmp_path) == [RESULT]
    assert RESULT.versions == versions()
    bare = replace(RESULT, protocol=None, seed=None, checkpoint=None)
    assert read_result(write_result(tmp_path, "test", bare)) == bare
    assert len(read_results(tmp_path)) == 2


def test_the_same_evaluation_replaces_its_file(tmp_path: Path) -> None:
    first = write_result(tmp_path, "test", RESULT)
    content = first.read_bytes()
    assert write_result(tmp_path, "test", RESULT).read_bytes() == content
    assert write_result(tmp_path, "test", replace(RESULT, metrics={"elbo": -1.0})) == first
    assert write_result(tmp_path, "test", replace(RESULT, rules={"source": "the paper"})) == first
    others = (
        replace(RESULT, seed=4),
        replace(RESULT, num_images=5),
        replace(RESULT, options={}),
        replace(RESULT, checkpoint=Checkpoint("checkpoints/best.ckpt", "cd" * 32, 500_000)),
    )
    assert len({write_result(tmp_path, "test", other) for other in (RESULT, *others)}) == 5


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    metrics: dict[str, Any] = {"elbo": float("nan"), "nll": float("inf"), "fid": None, "mse": 0.5}
    path = write_result(tmp_path, "test", replace(RESULT, metrics=metrics))
    expected = {"elbo": None, "nll": None, "fid": None, "mse": 0.5}
    assert json.loads(path.read_text())["metrics"] == expected
    assert read_result(path).metrics == expected


def test_a_run_without_results(tmp_path: Path) -> None:
    assert read_results(tmp_path) == []
    with pytest.raises(ConfigurationError, match="absent: no such folder, expected that of a run"):
        read_results(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "`format` is 2, expected 1"),
        ({"model": None}, "`model` is None, expected str"),
        ({"synthetic": 1}, "`synthetic` is 1, expected bool"),
        ({"protocol": 7}, "`protocol` is 7, expected str or null"),
        ({"metrics": {"fid": "12"}}, "`metrics.fid` is '12', expected a number below 1e+100, or null"),
        ({"rules": []}, "`rules` is [], expected dict or null"),
        ({"checkpoint": {"path": "x"}}, "has no key `checkpoint.sha256`"),
    ],
)
def test_wrong_contents(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_result(tmp_path, "test", RESULT)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigurationError) as error:
        read_results(tmp_path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\x00", "[" * 100_000])
def test_rubbish(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rubbish.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"rubbish\.json: "):
        read_result(path)


def test_missing_key(tmp_path: Path) -> None:
    path = write_result(tmp_path, "test", RESULT)
    content = json.loads(path.read_text())
    del content["deviations"]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="has no key `deviations`"):
        read_result(path)


def test_a_file_from_before_the_rules_were_stored(tmp_path: Path) -> None:
    path = write_result(tmp_path, "test", RESULT)
    content = json.loads(path.read_text())
    del content["rules"]
    path.write_text(json.dumps(content))
    assert read_result(path) == replace(RESULT, rules=None)
