"""The `report` command and its page, opened in a browser where there is one."""

import base64
import io
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_genesis.cli import main
from lightning_genesis.report.runs import read_run
from tests.browser import needs_browser, open_page
from tests.report.fake_runs import add_result, make_run

METRICS = {"ari_fg": 0.85, "ari_fg_attention": 0.8, "msc_fg": 0.6, "elbo": -7040.0, "fid": 52.0, "mse": 0.01}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two experiments, two and three seeds, one of them of synthetic data."""
    root = tmp_path_factory.mktemp("runs")
    noise = np.random.default_rng(0)

    def metrics() -> dict[str, float]:
        return {name: value * noise.normal(1, 0.02) for name, value in METRICS.items()}

    folders = [
        make_run(root, "genesisv2_objectsroom", seed, metrics(), steps=20_000, pictures=True)
        for seed in range(3)
    ]
    deviations = ["scores over 100 images, 320 in the protocol", "data: max5"]
    return folders + [
        make_run(
            root, "genesisv2_shapestacks", seed, metrics(), steps=9_000, synthetic=True, deviations=deviations
        )
        for seed in range(2)
    ]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report")
    assert main(["report", *map(str, runs), "--output", str(output)]) == 0
    assert {path.name for path in output.iterdir()} == {
        "report.html",
        "tables.md",
        "tables.tex",
        "tables.csv",
    }
    return output / "report.html"


class Page(HTMLParser):
    """Tags with their attributes, and whether every one that needs it is closed."""

    VOID = ("meta", "img", "link", "br")
    SVG = ("line", "path", "text", "circle", "svg")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.SVG
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def test_page_is_whole_and_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("table") >= 5
    assert tags.count("details") >= 3
    assert tags.count("svg") == 6
    assert "script" not in tags
    assert "link" not in tags
    assert {"content": "width=device-width, initial-scale=1", "name": "viewport"} in [
        a for _, a in parsed.tags
    ]
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r"base64,[^\"]*", "", text))
    targets = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    assert {attributes["href"] for tag, attributes in parsed.tags if tag == "a"} == {
        f"#{name}" for name in targets
    }
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert len(images) == 2
    for image in images:
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/webp;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        picture.load()
        assert picture.size == (int(str(image["width"])), int(str(image["height"])))
        assert image["alt"]


def test_page_says_what_the_tables_say(page: Path) -> None:
    text = Page(page.read_text(encoding="utf-8")).text.replace("\u00a0", " ")
    assert "ObjectsRoom" in text
    assert "ShapeStacks †" in text
    assert "ShapeStacks †: 100 images, paper 320; at most 5 objects" in text
    assert re.search(r"0\.85 ± 0\.01, [+−]?\d+\.\d σ \(GENESIS-V2, Table 1\)", text)
    assert re.search(r"Pictures of genesisv2_objectsroom-seed\d, the best of 3 by ARI-FG", text)
    assert "Not as it should be" not in text
    assert "at step 500000, SHA-256" in text


def test_a_report_needs_no_torch(runs: list[Path], tmp_path: Path) -> None:
    """Which takes most of a gigabyte, and longer to import than thirty runs to read."""
    code = (
        "import sys; from lightning_genesis.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or bool({'torch', 'wandb', 'pytorch_lightning'} & set(sys.modules)))"
    )
    rules = {"headline": ["ari_fg", "elbo"]}  # as `test` stores them
    folder = make_run(tmp_path, "genesisv2_objectsroom", 0, METRICS, steps=500, pictures=True, rules=rules)
    words = [sys.executable, "-c", code, "report", str(folder), "--output", str(tmp_path / "out")]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_same_runs_give_the_same_files(page: Path, runs: list[Path], tmp_path: Path) -> None:
    assert main(["report", *map(str, runs), f"{runs[0]}/", "--output", str(tmp_path / "again")]) == 0
    for path in page.parent.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


# ---------------------------------------------------------------- a browser

LOOK = """<script>
addEventListener('error', e => document.body.dataset.error = e.message, true);
addEventListener('load', () => { document.body.dataset.seen = JSON.stringify({
  width: document.documentElement.scrollWidth, window: innerWidth,
  pictures: [...document.images].map(i => i.complete && i.naturalWidth),
  charts: [...document.querySelectorAll('svg.chart')].map(s => s.getBoundingClientRect().height),
  tables: [...document.querySelectorAll('table')].map(t => t.rows.length),
  cells: [...document.querySelectorAll('td')].filter(t => t.scrollWidth > t.clientWidth + 1).length,
}); });
</script>"""
"""The page has no script; this one looks at it."""


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    text, replaced = re.subn(
        r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", LOOK, page.read_text(encoding="utf-8")
    )
    assert replaced == 1
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    _, messages = open_page(page, tmp_path / "profile", width)  # as it is, with its policy
    assert "CONSOLE" not in messages
    shown, messages = open_page(tmp_path / "page.html", tmp_path / "profile", width)
    assert "CONSOLE" not in messages
    assert "data-error" not in shown
    match = re.search(r'data-seen="([^"]*)"', shown)
    assert match
    seen = json.loads(match[1].replace("&quot;", '"'))
    assert len(seen["pictures"]) == 2
    assert all(seen["pictures"])
    assert len(seen["charts"]) == 6
    assert min(seen["charts"]) > 100
    assert min(seen["tables"]) > 1
    assert seen["width"] <= seen["window"] == width  # nothing sticks out
    assert seen["cells"] == 0


# ---------------------------------------------------------------- what is wrong


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("lightning-genesis: ") for line in lines)
    return [line.removeprefix("lightning-genesis: ") for line in lines]


def test_what_cannot_be_read_is_named_and_the_rest_reported(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = make_run(tmp_path, "genesis_objectsroom", 0, {"ari_fg": 0.6}, pictures=True)
    path = add_result(damaged, "genesis_objectsroom", 0, {"ari_fg": 0.6}, protocol=None)
    path.write_text(path.read_text(encoding="utf-8")[:-40])
    (damaged / "pictures" / "samples-002000.png").write_bytes(b"\x89PNG rubbish")
    untested = make_run(tmp_path, "genesis_objectsroom", 1, steps=1000)
    (untested / "checkpoints").mkdir()
    (untested / "checkpoints" / "last.ckpt").touch()
    untrained = make_run(tmp_path, "genesis_objectsroom", 2)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (tmp_path / "zoo-seed0" / "predictions" / "photo").mkdir(parents=True)  # of `predict`, and of no run
    folders = [*runs, damaged, untested, untrained, foreign, tmp_path / "zoo-seed0"]
    assert main(["report", *map(str, folders), "--output", str(tmp_path / "out")]) == 1
    *lines, last = lines_of(capsys)
    assert len(lines) == 5
    assert lines[0].startswith(f"{path}: not readable as JSON")
    command = f"lightning-genesis test --config {shlex.quote(f'{untested}/config.yaml')} --ckpt_path last"
    assert lines[1] == f"{untested}: no metrics; run `{command}`"
    assert lines[2] == f"{untrained}: neither metrics nor a checkpoint; has it been trained?"
    assert lines[3] == f"{foreign}: no metrics, no log and no configuration: not the folder of a run"
    assert lines[4].startswith(f"{damaged}/pictures/samples-002000.png: not readable (")
    assert (
        last
        == f"report: {tmp_path}/out/report.html is written, but 5 things are not as it should be, see above"
    )
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(str(folder) in text for folder in (untested, untrained, foreign))
    assert "genesis_objectsroom-seed1" in text  # its curves are there


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "report: the following arguments are required: run"),
        (["nowhere"], "report: nowhere: no such folder, expected that of a run"),
        (["empty"], "report: nothing to report: empty: no metrics, no log and no configuration"),
        (["full", "--protocol", "sri"], "no run has numbers of protocol 'sri'; there are genesisv2"),
        (["full", "--output", "file"], "report: file: is a file, expected a folder to write to"),
        (["full", "--colour", "red"], "report: unrecognized arguments: --colour red"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    make_run(tmp_path, "full", 0, None).rename(tmp_path / "full")
    add_result(tmp_path / "full", "genesis_objectsroom", 0, {"ari_fg": 0.6})
    assert main(["report", *args]) == 2
    (line,) = lines_of(capsys)
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "report").exists()


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    folder = make_run(tmp_path / "runs", f"{name}_x", 0, {"<b>ari": 0.5}, dataset="<i>data", steps=1000)
    assert main(["report", str(folder), "--output", str(tmp_path / "out")]) == 0
    tags = [tag for tag, _ in Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).tags]
    assert not {"img", "b", "i"} & set(tags)


def test_reports_among_the_folders_are_passed_over(runs: list[Path], page: Path, tmp_path: Path) -> None:
    assert main(["report", str(runs[0]), str(page.parent), "--output", str(tmp_path / "out")]) == 0


# ---------------------------------------------------------------- pictures


def test_newest_pictures_are_shown_and_figures_before_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "genesisv2_objectsroom", 0, pictures=True)
    assert [path.name for path in read_run(folder).pictures] == [
        "reconstructions-002000.png",
        "samples-002000.png",
    ]
    Image.new("RGB", (8, 8)).save(folder / "pictures" / "test_samples.png")
    assert [path.name for path in read_run(folder).pictures] == [
        "reconstructions-002000.png",
        "test_samples.png",
    ]
    (folder / "figures").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "figures" / "failures.png")
    assert [path.name for path in read_run(folder).pictures] == ["failures.png"]


def test_animations_stay_animations(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs", "genesisv2_objectsroom", 0, METRICS)
    (folder / "figures").mkdir()
    frames = [Image.new("RGB", (16, 8), (shade, 0, 0)) for shade in (0, 120, 240)]
    frames[0].save(
        folder / "figures/random_walk.gif", save_all=True, append_images=frames[1:], duration=120, loop=0
    )
    assert main(["report", str(folder), "--output", str(tmp_path / "out")]) == 0
    parsed = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    (source,) = [str(attributes["src"]) for tag, attributes in parsed.tags if tag == "img"]
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert getattr(picture, "n_frames", 1) == 3
    assert "Random walk" in parsed.text


def test_pictures_are_of_the_best_seed(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path, "genesisv2_objectsroom", seed, {"ari_fg": score}, pictures=True)
        for seed, score in enumerate((0.7, 0.9, 0.8))
    ]
    assert main(["report", *map(str, folders), "--output", str(tmp_path / "out")]) == 0
    text = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert "Pictures of genesisv2_objectsroom-seed1, the best of 3 by ARI-FG" in text
