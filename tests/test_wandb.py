"""W&B offline: never asks, never blocks, and the run can be read back."""

import base64
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path

import pytest
import wandb
import yaml

from lightning_genesis.cli import main
from lightning_genesis.report.dashboard import SECTIONS, panels_of
from lightning_genesis.runs.loggers import SUMMARIES, make_wandb_logger
from lightning_genesis.runs.wandb_account import has_key, server
from tests.ranks.command import TIMEOUT
from tests.report.fake_runs import make_run
from tests.test_cli import TINY, error_line
from tests.wandb_file import read_finished, read_run, read_summary, top_level
from tests.wandb_server import KEY, serving


@dataclass
class Offline:
    """A run that was trained, resumed and tested without a connection."""

    folder: Path
    identity: str
    parts: list[Path]
    """W&B's files, in their order."""
    said: list[str]
    """By each of the three commands."""


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Offline:
    place = tmp_path_factory.mktemp("offline")
    parts: list[Path] = []
    said = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(place / "none"))
        patch.setenv("HOME", str(place))  # no account
        patch.setenv("WANDB_DATA_DIR", str(place / "data"))
        patch.chdir(place)
        (place / "tiny.yaml").write_text(f"# A tiny run.\n# Source: ours.\n{yaml.safe_dump(TINY)}")
        fit = ["fit", "--config", "tiny.yaml", "--run.name", "offline-seed0", "--run.wandb", "true"]
        fit += ["--run.group", "mine", "--run.tags", "[first, second]", "--run.artifacts", "true"]
        folder = place / "runs/offline-seed0"
        for command in (
            [*fit, "--trainer.max_steps", "4"],
            [*fit, "--trainer.max_steps", "6", "--ckpt_path", "last"],
            ["test", "--config", str(folder / "config.yaml"), "--ckpt_path", "last"],
        ):
            with redirect_stdout(StringIO()) as text:
                assert main(command) == 0
            said.append(text.getvalue())
            identity, owner = (folder / "wandb-id.txt").read_text(encoding="utf-8").splitlines()
            assert owner == str(folder)
            parts += set(folder.glob(f"wandb/offline-run-*/run-{identity}.wandb")) - set(parts)
            if len(parts) == 1:
                shutil.copytree(folder / "checkpoints", place / "kept")
    assert len(parts) == 3, "all go on with one run"
    return Offline(folder, identity, parts, said)


def test_offline_run_is_read_back(offline: Offline) -> None:
    file = offline.parts[0]
    config, rows = read_run(file)
    assert config["model"]["class_path"] == "lightning_genesis.models.GenesisV2"
    assert config["data"]["init_args"]["train_size"] == 24
    assert config["experiment"] == "offline"
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    assert any("val/ari_fg" in row for row in rows)
    names = [name for row in rows for key, name in row.items() if key == "pictures/reconstructions/filenames"]
    assert names
    assert all((file.parent / "files" / picture).is_file() for picture in names[0])

    # what W&B shows it by: group, tags, notes, the axis, the best and the last
    records = read_finished(file)
    (about,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (about.run_group, list(about.tags)) == ("mine", ["first", "second"])
    assert about.notes == "A tiny run.\nSource: ours."
    metrics = {record.metric.name: record.metric for record in records if record.metric.name}
    assert metrics["val/ari_fg"].step_metric == "trainer/global_step"
    assert (metrics["val/ari_fg"].summary.max, metrics["val/ari_fg"].summary.last) == (True, True)
    assert (metrics["val/mse"].summary.min, metrics["train/loss"].summary.last) == (True, True)
    logged = {name for row in rows for name in row}
    assert set(SUMMARIES) <= logged, "no summary of what is never logged"


def test_a_resumed_run_goes_on(offline: Offline) -> None:
    _, rows = read_run(offline.parts[1])
    assert [row["trainer/global_step"] for row in rows if "train/loss" in row] == [5]
    # the best of all its parts
    before, after = (read_summary(part) for part in offline.parts[:2])
    best = before["val/ari_fg"]["max"]
    assert "val/ari_fg" not in after, "it ends before its first validation"
    assert after["best/val/ari_fg"] == before["best/val/ari_fg"] == pytest.approx(best)
    assert (before["best/step"], after["best/step"]) == (4, 4)


def test_the_upload_is_one_command(offline: Offline) -> None:
    first, resumed, tested = offline.said
    folder = offline.parts[0].parent
    assert f"offline; to upload: wandb sync runs/offline-seed0/wandb/{folder.name}\n" in first
    place = f"runs/offline-seed0/wandb/offline-run-*-{offline.identity}"
    assert all(f"offline; to upload: wandb sync {place}\n" in said for said in (resumed, tested))
    assert [*offline.folder.parents[1].glob(place)] != []
    assert {*offline.folder.parents[1].glob(place)} == {part.parent for part in offline.parts}


def test_all_parts_are_uploaded_as_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By W&B's own command: the rows of the second part come after those of the first."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for losses in ([3.0, 2.0], [1.0]):
        logger = make_wandb_logger(tmp_path / "run", "name")
        for loss in losses:
            logger.log_metrics({"train/loss": loss}, step=int(10 * loss))
        logger.experiment.finish()
        time.sleep(1.1)  # a part is named after the second in which it starts
    identity = (tmp_path / "run/wandb-id.txt").read_text().split()[0]
    parts = sorted((tmp_path / "run/wandb").glob(f"offline-run-*-{identity}"))
    assert len(parts) == 2
    with serving([]) as server:
        environment = os.environ | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY}
        for name in ("WANDB_MODE", "WANDB_SERVICE"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "wandb", "sync", *map(str, reversed(parts))]
        # it writes logs into the folder it is called in
        options = {"cwd": tmp_path, "env": environment, "timeout": TIMEOUT, "capture_output": True}
        subprocess.run(command, check=True, **options)
    rows = server.uploaded[identity]
    assert [(row["train/loss"], row["_step"]) for row in rows] == [(3.0, 0), (2.0, 1), (1.0, 2)]


def test_pictures_and_films_have_captions(offline: Offline) -> None:
    """They say the step and what is seen."""
    _, rows = read_run(offline.parts[0])
    captions = {key: value for row in rows for key, value in row.items() if key.endswith("/captions")}
    assert captions == {
        "pictures/initial_masks/captions": ["step 0: image, segmentation and every slot's attention mask"],
        "pictures/reconstructions/captions": ["step 4: image, reconstruction, segmentation, slots"],
        "pictures/samples/captions": ["step 4: sample from the prior, its masks, slots"],
        "pictures/random_walk/captions": ["step 4: a walk through the prior"],
    }


def test_the_best_and_the_last_checkpoint_are_artifacts(offline: Offline) -> None:
    """As they are in the folder when training has ended."""
    records = read_finished(offline.parts[0])
    artifacts = [record.artifact for record in records if record.artifact.name]
    kept = {alias: found for found in artifacts for alias in found.aliases if alias != "latest"}
    name = f"checkpoints-{offline.identity}"
    assert {alias: found.name for alias, found in kept.items()} == {"best": name, "last": name}
    for alias, found in kept.items():
        (entry,) = found.manifest.contents
        content = (offline.folder.parents[1] / f"kept/{alias}.ckpt").read_bytes()
        assert (entry.path, entry.size) == (f"{alias}.ckpt", len(content))
        assert entry.digest == base64.b64encode(hashlib.md5(content).digest()).decode()
        assert Path(entry.local_path).read_bytes() == content, "the copy that is uploaded later"
        assert json.loads(found.metadata)["step"] == 4


def test_a_test_is_logged_to_the_same_run(offline: Offline) -> None:
    """At the step of the checkpoint: numbers, and a table of them."""
    part = offline.parts[2]
    _, rows = read_run(part)
    assert {row["trainer/global_step"] for row in rows} == {6}
    (results,) = offline.folder.glob("metrics/test-*.json")
    metrics = json.loads(results.read_text(encoding="utf-8"))["metrics"]
    summary = read_summary(part)
    assert summary["test/ari_fg"] == pytest.approx(metrics["ari_fg"])
    assert "32 px" in summary["test/differs"]
    (path,) = (row["tables/test/path"] for row in rows if "tables/test/path" in row)
    table = json.loads((part.parent / "files" / path).read_text(encoding="utf-8"))
    assert table["columns"] == ["metric", "here", "paper", "difference"]
    values = {label: value for label, value, *_ in table["data"]}
    assert len(values) == len(metrics)
    assert values["MSE"] == pytest.approx(metrics["mse"])


def test_a_report_is_logged_to_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To those that W&B knows: every cell as a table, and what the seeds have in common."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    for seed, score in enumerate((0.8, 0.9)):
        run = make_run(Path("runs"), "genesisv2_shapestacks", seed, {"ari_fg": score, "mse": 0.5})
        if seed == 0:
            (run / "wandb-id.txt").write_text("abcd1234")
    assert main(["report", "runs/genesisv2_shapestacks-seed0", str(run), "--wandb"]) == 0
    said = capsys.readouterr().out
    (file,) = Path("runs").glob("*/wandb/offline-run-*/run-abcd1234.wandb")
    assert "tables -> 1 runs of W&B\n" in said
    assert f"offline; to upload: wandb sync {file.parent}\n" in said

    summary = read_summary(file)
    values = {name: value for name, value in summary.items() if name.startswith("report/")}
    prefix = "report/genesisv2/"
    scores = {"mean": 0.85, "std": 0.1 / 2**0.5, "seeds": 2}
    assert values == pytest.approx(
        {f"{prefix}ari_fg/{name}": value for name, value in scores.items()}
        | {f"{prefix}mse/mean": 0.5, f"{prefix}mse/std": 0.0, f"{prefix}mse/seeds": 2}
    )
    (row,) = (row for row in read_run(file)[1] if "tables/report/path" in row)
    assert row["trainer/global_step"] == 500_000
    table = json.loads((file.parent / "files" / row["tables/report/path"]).read_text(encoding="utf-8"))
    cells = [dict(zip(table["columns"], cells, strict=True)) for cells in table["data"]]
    assert next(cell for cell in cells if cell["metric"] == "ari_fg")["mean"] == pytest.approx(0.85)
    with open("report/tables.csv", newline="") as text:
        assert len(cells) == len([*csv.DictReader(text)])


def test_an_artifact_that_cannot_be_kept_hurts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").write_text("in the way")
    logger = make_wandb_logger(tmp_path / "run", "name")
    (tmp_path / "last.ckpt").write_text("weights")
    with pytest.warns(UserWarning, match=r"W&B: .*last\.ckpt is not kept as an artifact"):
        logger.log_checkpoint(tmp_path / "last.ckpt", {})
    logger.log_metrics({"train/loss": 1.0}, step=3)
    logger.experiment.finish()
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    assert [row["train/loss"] for row in read_run(file)[1]] == [1.0]


@pytest.mark.parametrize("place", ["variable", "own", "old", "address", "settings", "none"])
def test_an_account_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """As W&B's own library finds it: it keeps keys by host and port, and once kept them by another host."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    key = 10 * "abcd"
    host = str(wandb.Settings().base_url).removeprefix("https://")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    local = dict.fromkeys(("address", "settings"), "localhost:8080")
    hosts = {"own": host, "old": "api.wandb.ai", "none": "example.org", **local}
    if place == "variable":
        monkeypatch.setenv("WANDB_API_KEY", key)
    else:
        (tmp_path / "netrc").write_text(f"machine {hosts[place]} login user password {key}")
    if place == "address":
        monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:8080")
    if place == "settings":
        (tmp_path / "settings").write_text("[default]\nbase_url = http://localhost:8080\n")
    settings = wandb.Settings(settings_system=str(tmp_path / "settings"))
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    assert server() == settings.base_url
    assert has_key() is (place != "none")
    if place != "variable":
        wbauth = pytest.importorskip("wandb.sdk.lib.wbauth", reason="an older W&B has it elsewhere")
        assert (wbauth.read_netrc_auth(host=server()) == key) is (place != "none")


# ---------------------------------------------------------------- the workspace

NOT_HERE = ("test/fid", "test/kid", "test/s_acc", "test/importance_bits_per_dim", "pictures/imagination")
"""What panels show besides what this run logs: it has no Inception weights, no towers, no imagination."""


@pytest.fixture(scope="module")
def logged(offline: Offline) -> set[str]:
    """What the server would say has a last value."""
    return {name for part in offline.parts for name in top_level(part)}


def test_every_panel_has_data(logged: set[str]) -> None:
    sections = panels_of(logged)
    assert list(sections) == ["learning", "constraint", "segmentation", "generation", "pictures", "seeds"]
    panels = [panel for panels in sections.values() for panel in panels]
    assert {metric for panel in panels for metric in panel.metrics} <= logged
    assert all(panel.metrics for panel in panels)
    titles = [panel.title for panel in panels]
    assert len(set(titles)) == len(titles)
    (constraint,) = (panel for panel in panels if panel.title == "genesis_v2: error and goal")
    assert constraint.metrics == ("geco/genesis_v2/nll_average", "geco/genesis_v2/goal")
    assert panels_of([]) == {}


def test_every_name_that_a_panel_shows_is_logged(logged: set[str]) -> None:
    """None is misspelt, or has another name by now."""
    wanted = {metric for panels in SECTIONS.values() for panel in panels for metric in panel.metrics}
    patterns = {metric.replace("{branch}", "*") for metric in wanted}
    found = {pattern for pattern in patterns if any(fnmatchcase(name, pattern) for name in logged)}
    assert patterns - found == set(NOT_HERE)


def test_branches_have_charts_of_their_own() -> None:
    logged = {
        f"geco/{branch}/{name}" for branch in ("sri", "segregation") for name in ("goal", "nll_average")
    }
    assert [panel.title for panel in panels_of({*logged, "geco/fixed/beta"})["constraint"]] == [
        "segregation: error and goal",
        "sri: error and goal",
        "fixed: β",
    ]


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Logs in at an address."""
    pytest.importorskip("wandb_workspaces", reason="W&B's library of workspaces is not installed")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return lambda address: monkeypatch.setenv("WANDB_BASE_URL", address)


def test_a_workspace_is_saved(
    logged: set[str], account: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its definition, as W&B's own library writes it, and reads it again."""
    from wandb_workspaces.workspaces import Workspace, internal

    with serving([dict.fromkeys(sorted(logged), 1.0), {"train/loss": 2.0}]) as server:
        account(server.address)
        assert main(["dashboard", "sprites", "--name", "mine"]) == 0
    panels, address = capsys.readouterr().out.splitlines()
    assert panels.startswith("panels: learning 7, constraint 2, segmentation 7, generation 3, pictures 5")
    (view,) = server.saved
    assert (view["entityName"], view["projectName"], view["type"]) == ("me", "sprites", "project-view")
    assert view["displayName"] == "mine"
    assert address == f"{server.address}/me/sprites?nw={view['name'].removeprefix('nw-').removesuffix('-v')}"

    section = json.loads(view["spec"])["section"]
    assert section["settings"]["xAxis"] == "trainer/global_step"
    found = section["panelBankConfig"]["sections"]
    assert [each["name"] for each in found] == [*SECTIONS]
    by_title = {}
    for panel in (panel for each in found for panel in each["panels"]):
        config = panel["config"]
        if panel["viewType"] != "Weave":
            by_title[config["chartTitle"]] = config
            shown = config["mediaKeys"] if panel["viewType"] == "Media Browser" else config["metrics"]
            assert shown
            assert set(shown) <= logged, "no panel without data"
    table = json.dumps(found[-1]["panels"][-1])
    assert '"tables/test"' in table
    chart = by_title["genesis_v2: error and goal"]
    assert chart["metrics"] == ["geco/genesis_v2/nll_average", "geco/genesis_v2/goal"]
    assert chart["xAxis"] == "trainer/global_step"
    seeds = by_title["ARI-FG over seeds"]
    assert (seeds["groupBy"], seeds["groupAgg"], seeds["groupArea"]) == ("experiment.value", "mean", "stddev")

    spec = internal.WorkspaceViewspec.model_validate_json(view["spec"])
    named = {"entity": "me", "project": "sprites", "display_name": "mine", "name": "x", "id": "y"}
    read = Workspace._from_model(internal.View(spec=spec, **named))
    assert [len(each.panels) for each in read.sections] == [len(each["panels"]) for each in found]


@pytest.mark.parametrize(
    ("arguments", "key", "said"),
    [
        (["sprites", "--entity", "you"], KEY, "you/sprites"),
        (["sprites"], KEY, "me/sprites: no run there has logged anything that a panel shows; train first"),
        (["sprites"], KEY[::-1], "W&B refuses: "),
    ],
    ids=["project", "nothing logged", "key"],
)
def test_what_the_server_refuses(
    account: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    key: str,
    said: str,
) -> None:
    with serving([{"of_others": 1.0}]) as server:
        account(server.address)
        monkeypatch.setenv("WANDB_API_KEY", key)
        assert main(["dashboard", *arguments]) == 2
    assert server.saved == []
    assert said in error_line(capsys)


def test_without_an_account_or_a_connection(
    account: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with serving([]) as server:
        address = server.address
    account(address)
    assert main(["dashboard", "sprites"]) == 2
    assert error_line(capsys).endswith(f"dashboard: no connection to {address}; is there a network?")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert main(["dashboard", "sprites"]) == 2
    assert error_line(capsys).endswith("no account of W&B: run `wandb login`, or set WANDB_API_KEY")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["dashboard", "sprites"]) == 2
    line = error_line(capsys)
    assert line.endswith("library of workspaces is missing: pip install 'lightning-genesis[dashboard]'")


# ---------------------------------------------------------------- a home that nothing can be written to


def test_no_home_and_a_second_run_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies go to the run's folder; what W&B refuses once is said once, and the next run is a new one."""
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DATA_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)

    def refuse() -> None:
        raise OSError("no")

    first = make_wandb_logger(tmp_path / "one", "one")
    first.log_table("scores", columns=["a"], data=[[1]])
    assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "one/wandb")
    with pytest.warns(UserWarning, match=r"does not answer \(no\)"):
        first.guarded(refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.log_summary({"a": 1})
    second = make_wandb_logger(tmp_path / "two", "two")
    second.log_metrics({"a": 2.0}, 0)
    assert second.experiment.id == (tmp_path / "two/wandb-id.txt").read_text(encoding="utf-8").split()[0]
    second.experiment.finish()
