"""`lightning-genesis label`: the page by a parser and by a browser if there is one; answers, agreement."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from lightning_genesis.cli import main
from lightning_genesis.commands.label import (
    PLAIN_QUESTION,
    Agreement,
    Answers,
    agreement,
    digest,
    read_answers,
    write_answers,
)
from lightning_genesis.commands.label_page import make_page
from lightning_genesis.commands.sample import sample_batches
from lightning_genesis.metrics.structural_accuracy import judge_towers, wilson_interval
from lightning_genesis.models import VAE, GenesisV2, SlotAttention
from tests.browser import needs_browser, open_page
from tests.test_sampling import make_run
from tests.weights_file import export


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples").mkdir()
    for number in range(4):
        picture = np.full((16, 16, 3), 40 * number, np.uint8)
        Image.fromarray(picture).save(tmp_path / f"samples/{number:06d}.png")
    return tmp_path


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def data_of(page: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What the page's script knows: about the set, and addresses of images by name."""
    about, images = (re.search(rf"^const {name} = (.*);$", page, re.M) for name in ("ABOUT", "IMAGES"))
    assert about
    assert images
    return json.loads(about[1]), json.loads(images[1])


def pixels(address: str) -> np.ndarray:
    """The picture at a `data:` address, `[H, W, 3]`."""
    kind, content = address.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


class Elements(HTMLParser):
    """Every element's name and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


# ---------------------------------------------------------------- the page


def test_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "samples", "--output", "out/page.html", "--num_images", "3"]) == 0
    assert "samples -> out/page.html: 3 images" in capsys.readouterr().out
    assert [path.name for path in (folder / "out").iterdir()] == ["page.html"]
    page = (folder / "out/page.html").read_text()
    about, images = data_of(page)
    assert list(images) == ["000000.png", "000001.png", "000002.png"]
    shown = {name: pixels(address) for name, address in images.items()}
    for name, picture in shown.items():
        assert np.array_equal(picture, np.asarray(Image.open(folder / "samples" / name)))
    assert about == {"format": 1, "question": "Do all blocks of the tower touch?", "images": digest(shown)}
    # nothing from outside: neither addresses nor elements that load something
    assert "://" not in page
    elements = Elements(page).found
    assert {tag for tag, _ in elements}.isdisjoint({"link", "iframe", "object", "embed", "base"})
    assert not any("src" in attributes or "href" in attributes for _, attributes in elements)
    ids = {attributes["id"] for _, attributes in elements if "id" in attributes}
    assert {"yes", "no", "back", "download", "progress", "labeller", "image"} <= ids
    assert set(re.findall(r'byId\("(\w+)"\)', page)) <= ids


def test_a_text_cannot_end_the_script() -> None:
    name, question = "a</script><b>.png", "Is <it> @IMAGES@ & so?"
    page = make_page({name: np.zeros((2, 2, 3), np.uint8)}, question, "0", 1)
    assert page.count("</script>") == 1
    about, images = data_of(page)
    assert about["question"] == question
    assert list(images) == [name]
    assert "<h1>Is &lt;it&gt; @IMAGES@ &amp; so?</h1>" in page


@needs_browser
def test_the_page_in_a_browser(folder: Path) -> None:
    """Keys, buttons, progress, what is stored and what is downloaded, by a script at the page's end."""
    assert main(["label", "samples", "--output", "page.html"]) == 0
    script = """
    <script>
    const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    press("y"); press("N"); press("b"); press("y"); byId("no").click();
    byId("labeller").value = "Ann O'Nym"; byId("labeller").dispatchEvent(new Event("input"));
    const seen = { status: byId("status").textContent, value: byId("progress").value,
      max: byId("progress").max, wide: byId("image").naturalWidth, stored: localStorage.getItem(key) !== null,
      thumbnails: byId("all").children.length, answers: JSON.parse(contents()) };
    const name = []; HTMLAnchorElement.prototype.click = function () { name.push(this.download); };
    byId("download").click(); seen.file = name[0];
    document.body.textContent = "RESULT" + JSON.stringify(seen) + "END";
    </script></body>"""
    page = (folder / "page.html").read_text().replace("</body>", script)
    (folder / "tried.html").write_text(page)
    shown, messages = open_page(folder / "tried.html", folder / "profile")
    found = re.search(r"RESULT(.*)END", shown)
    assert found, messages[-2000:]
    seen = json.loads(found[1])
    assert seen["answers"] == {
        "format": 1,
        "labeller": "Ann O'Nym",
        "question": "Do all blocks of the tower touch?",
        "images": data_of(page)[0]["images"],
        "answers": {"000000.png": True, "000001.png": True, "000002.png": False},
    }
    assert seen["status"] == "Image 4 of 4; 3 answered"
    assert (seen["value"], seen["max"], seen["thumbnails"]) == (3, 4, 4)
    assert seen["stored"]
    assert seen["file"] == "answers-Ann_O_Nym.json"
    (folder / "answers.json").write_text(json.dumps(seen["answers"]))
    assert read_answers(folder / "answers.json").answers == seen["answers"]["answers"]


# ---------------------------------------------------------------- a model's samples


def test_samples_of_a_model_and_their_judgement(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = GenesisV2(num_slots=3, image_size=32, latent_dim=8, feature_dim=8).eval()
    export(model, folder / "model.safetensors")
    options = ["--num_images", "5", "--seed", "2", "--device", "cpu"]
    (folder / "towers.yaml").write_text(yaml.safe_dump(TOWERS))
    towers = ["--data", "towers.yaml"]
    assert main(["label", "model.safetensors", "--output", "page.html", *options, *towers]) == 0
    assert "automatic S-Acc" in capsys.readouterr().out
    _, images = data_of((folder / "page.html").read_text())
    (scene,) = sample_batches(model, 5, seed=2)
    expected = (255 * scene.reconstruction.clamp(0, 1)).movedim(1, -1).numpy()
    for address, image in zip(images.values(), expected, strict=True):
        assert np.abs(pixels(address) - image).max() <= 0.501
    answers = read_answers(folder / "page.automatic.json")
    assert answers.labeller == "automatic"
    judged = judge_towers(scene.segmentation(), scene.reconstruction).correct.tolist()
    assert list(answers.answers.values()) == judged
    # the same set, however it was made
    assert main(["sample", "model.safetensors", "--output", "drawn", "--images", *options]) == 0
    assert main(["label", "drawn", "--output", "second.html"]) == 0
    assert data_of((folder / "second.html").read_text())[0]["images"] == answers.images


TOWERS = {"class_path": "data_modules.ShapeStacks", "init_args": {"image_size": 32, "num_slots": 3}}
DISKS = {"class_path": "data_modules.MultiDSprites", "init_args": {"image_size": 32, "num_slots": 3}}


@pytest.mark.parametrize(
    ("data", "question", "reason"),
    [
        (DISKS, [], "MultiDSprites shows no towers of blocks"),
        (None, [], "which data the model was trained on is not known; --data says it"),
        (TOWERS, ["--question", "Is it red?"], "it answers 'Do all blocks of the tower touch?' alone"),
    ],
)
def test_towers_are_judged_where_there_are_some(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    data: dict[str, Any] | None,
    question: list[str],
    reason: str,
) -> None:
    model = GenesisV2(num_slots=3, image_size=32, latent_dim=8, feature_dim=8).eval()
    export(model, folder / "model.safetensors")
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    own = [*(["--data", "data.yaml"] if data else []), *question, "--num_images", "2", "--device", "cpu"]
    assert main(["label", "model.safetensors", "--output", "page.html", *own]) == 0
    assert f"  no automatic judgement: {reason}\n" in capsys.readouterr().out
    assert not list(folder.glob("*.automatic.json"))
    asked = question[1] if question else PLAIN_QUESTION
    assert data_of((folder / "page.html").read_text())[0]["question"] == asked


def test_a_model_that_cannot_be_judged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(SlotAttention(num_slots=2, image_size=32, slot_dim=8, feature_dim=8), folder / "slots.safetensors")
    assert main(["label", "slots.safetensors", "--output", "page.html"]) == 2
    assert "SlotAttention has no prior" in error_line(capsys)
    export(VAE(num_slots=1, image_size=32, latent_dim=4), folder / "vae.safetensors")
    assert main(["label", "vae.safetensors", "--output", "page.html", "--num_images", "2"]) == 0
    assert not list(folder.glob("*.automatic.json"))  # no masks: for people alone
    assert "no masks" in capsys.readouterr().out


def test_the_checkpoint_that_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(folder / "run", "best", "last")
    for name, chosen in (("best", []), ("last", ["--checkpoint", "last"])):
        arguments = ["--output", f"{name}.html", "--num_images", "2", "--device", "cpu"]
        assert main(["label", "run", *arguments, *chosen]) == 0
        assert f"run/checkpoints/{name}.ckpt -> {name}.html" in capsys.readouterr().out
        assert (
            main(
                ["label", str(run / f"checkpoints/{name}.ckpt"), *arguments[:1], "file.html", *arguments[2:]]
            )
            == 0
        )
        assert (folder / f"{name}.html").read_bytes() == (folder / "file.html").read_bytes()
    assert (folder / "best.html").read_bytes() != (folder / "last.html").read_bytes()


# ---------------------------------------------------------------- agreement


def answers(labeller: str, values: list[bool], images: str = "set") -> Answers:
    return Answers(labeller, "So?", images, {f"{i}.png": value for i, value in enumerate(values)})


def test_agreement_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first = rng.random(50) < 0.7
        second = np.where(rng.random(50) < 0.8, first, ~first)
        found = agreement(answers("a", first.tolist()), answers("b", second.tolist()))
        assert found.count == 50
        assert found.share == pytest.approx((first == second).mean())
        assert found.kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
        assert found.interval == wilson_interval(int((first == second).sum()), 50)


def test_agreement_over_what_both_have_answered() -> None:
    one, other = answers("a", [True, True, False, False, True]), answers("b", [True, False, True, False])
    assert agreement(one, other) == Agreement(1, 1, 1, 1)
    assert agreement(one, other).kappa == 0
    assert np.isnan(Agreement(3, 0, 0, 0).kappa)
    assert Agreement(3, 0, 0, 3).kappa == 1


def test_the_command_reports_agreement(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_answers(folder / "a.json", answers("Ann", [True] * 6 + [False] * 4))
    write_answers(folder / "b.json", answers("automatic", [True] * 5 + [False] * 5))
    assert main(["label", "--agreement", "a.json", "b.json"]) == 0
    assert capsys.readouterr().out == (
        "10 images answered by both: So?\n"
        "  Ann        yes 60.0% [31.3%, 83.2%]\n"
        "  automatic  yes 50.0% [23.7%, 76.3%]\n"
        "  both yes 5, only Ann 1, only automatic 0, both no 4\n"
        "agreement 90.0% [59.6%, 98.2%]\n"
        "Cohen's kappa 0.800\n"
    )
    write_answers(folder / "a.json", answers("Ann", [True] * 10))
    write_answers(folder / "b.json", answers("Bob", [True] * 10))
    assert main(["label", "--agreement", "a.json", "b.json"]) == 0
    assert "kappa is not defined" in capsys.readouterr().out


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("{", "not readable as JSON"),
        ("[]", "`format` is 'list', expected 1"),
        ('{"format": 2}', "`format` is 2, expected 1"),
        ({"labeller": 3}, "`labeller` is 3, expected str"),
        ({"images": None}, "`images` is None, expected str"),
        ({"answers": []}, "`answers` is [], expected images with true or false"),
        ({"answers": {"a.png": 1}}, "`answers.a.png` is 1, expected true or false"),
    ],
)
def test_damaged_answers(folder: Path, capsys: pytest.CaptureFixture[str], change: Any, line: str) -> None:
    write_answers(folder / "a.json", answers("a", [True]))
    contents = json.loads((folder / "a.json").read_text())
    text = change if isinstance(change, str) else json.dumps({**contents, **change})
    (folder / "b.json").write_text(text)
    assert main(["label", "--agreement", "a.json", "b.json"]) == 2
    assert f"error: b.json: {line}" in error_line(capsys)


def test_answers_to_other_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_answers(folder / "a.json", answers("a", [True], images="1" * 64))
    write_answers(folder / "b.json", answers("b", [True], images="2" * 64))
    assert main(["label", "--agreement", "a.json", "b.json"]) == 2
    assert (
        "a.json is about the images 111111111111, b.json about 222222222222: expected the same"
        in error_line(capsys)
    )
    write_answers(folder / "b.json", Answers("b", "Red?", "1" * 64, {"0.png": True}))
    assert main(["label", "--agreement", "a.json", "b.json"]) == 2
    assert "a.json answers 'So?', b.json 'Red?': expected the same question" in error_line(capsys)
    write_answers(folder / "b.json", Answers("b", "So?", "1" * 64, {"other.png": True}))
    assert main(["label", "--agreement", "a.json", "b.json"]) == 2
    assert "no image has been answered by both" in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "expected SAMPLES and --output page.html"),
        (["samples"], "expected SAMPLES and --output page.html"),
        (["samples", "--output", "page.pdf"], "--output page.pdf should end in .html"),
        (["samples", "--output", "page.html", "--num_images", "0"], "--num_images 0, expected 1 or more"),
        (["empty", "--output", "page.html"], "empty: no PNGs there"),
        (["broken", "--output", "page.html"], "broken/a.png: not readable ("),
        (["missing", "--output", "page.html"], "missing"),
        (["samples", "--agreement", "a.json", "b.json"], "--agreement takes two files of answers"),
        (["--checkpoint", "last", "--agreement", "a.json", "b.json"], "--agreement takes two files"),
        (["samples", "--output", "page.html", "--checkpoint", "last"], "samples is no run's folder"),
    ],
)
def test_wrong_use(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken/a.png").write_bytes(b"not a picture")
    before = sorted(folder.rglob("*"))
    assert main(["label", *arguments]) == 2
    assert line in error_line(capsys)
    assert sorted(folder.rglob("*")) == before
