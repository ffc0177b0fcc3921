"""Which values a command line and a file of values stand for."""

from pathlib import Path

import pytest
import yaml

from lightning_genesis.commands.swept_values import Point, SweptOptions, split_values
from lightning_genesis.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5,0.7", ["0.5", "0.7"]),
        ("[1,2]", ["[1,2]"]),
        ("[1,2],[3,4]", ["[1,2]", "[3,4]"]),
        ("{a: 1, b: [2, 3]}, {a: 2}", ["{a: 1, b: [2, 3]}", "{a: 2}"]),
        ("'a,b'", ["a,b"]),
        ("'a,b',c", ["a,b", "c"]),
        ('["x,]", 2],3', ['["x,]", 2]', "3"]),
        ("it's,fine", ["it's", "fine"]),
        ("GECO,{class_path: FixedBeta, init_args: {beta: 0.5}}", None),
        ("null, true,-1", ["null", "true", "-1"]),
    ],
)
def test_commas_inside_brackets_and_quotes_belong_to_the_value(text: str, values: list[str] | None) -> None:
    found = split_values(text, "--x")
    assert found == (values or ["GECO", "{class_path: FixedBeta, init_args: {beta: 0.5}}"])
    if text[0] not in "'i":  # YAML's own reading of the values with brackets around them
        assert [yaml.safe_load(value) for value in found] == yaml.safe_load(f"[{text}]")


def lines(*options: str, file: Path | None = None) -> list[list[str]]:
    swept = SweptOptions(options, file)
    return [swept.at(point) for point in swept.points]


def test_a_grid_keeps_the_place_of_its_options() -> None:
    """A class stands before its own options, or the parser would not know them."""
    options = [
        "--model.objective",
        "FixedBeta",
        "--model.objective.beta=1,2",
        "-c",
        "x.yaml",
        "--data.n",
        "3,4",
    ]
    assert [(line[3], line[7]) for line in lines(*options)] == [
        ("1", "3"),
        ("1", "4"),
        ("2", "3"),
        ("2", "4"),
    ]
    assert lines(*options)[0] == [
        *("--model.objective", "FixedBeta", "--model.objective.beta", "1"),
        *("-c", "x.yaml", "--data.n", "3"),
    ]
    assert lines("--a", "1", "--flag", "--b=x") == [["--a", "1", "--flag", "--b", "x"]]
    assert lines("--change", "a,b") == [["--change", "a,b"]]
    assert lines("--trainer.devices", "[0,1]") == [["--trainer.devices", "[0,1]"]]


def test_names_tell_points_apart_and_do_not_depend_on_other_values() -> None:
    few = SweptOptions(["--model.init_args.std", "0.5,0.7", "--model.objective", "[1,2],GECO"]).points
    more = SweptOptions(
        ["--model.init_args.std", "0.3,0.5,0.7", "--model.objective", "GECO,[1,2],[1,3]"]
    ).points
    assert few[1].name == "std=0.5,objective=GECO"
    assert {point.name for point in few} <= {point.name for point in more}
    assert len({point.name for point in more}) == 9
    assert Point((("model.a.beta", "1"), ("model.b.beta", "2"))).name == "model.a.beta=1,model.b.beta=2"
    for value in ("/etc/../x", "a b", "x" * 999, "ä", "{a: 1}", "-", "..", "\n"):
        name = Point((("data.folder", value),)).name
        assert "/" not in name
        assert name.isprintable()
        assert name.isascii()
        assert len(name.encode()) <= 150
    many = Point(tuple((f"model.option{number}", str(number)) for number in range(40)))
    assert len(many.name) <= 150


def test_a_file_of_values(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("model.std: [0.5, 0.7]\nmodel.objective: [GECO, {class_path: FixedBeta}, null]\n")
    found = lines("--data.n", "1,2", file=file)
    assert len(found) == 12
    assert found[1] == [
        *("--data.n", "1", "--model.std", "0.5"),
        *("--model.objective", '{"class_path": "FixedBeta"}'),
    ]
    assert found[2][-1] == "null"
    file.write_text("- {model.std: 0.5, model.latent_dim: 8}\n- {model.std: 0.7, model.latent_dim: 16}\n")
    assert lines(file=file) == [
        ["--model.std", "0.5", "--model.latent_dim", "8"],
        ["--model.std", "0.7", "--model.latent_dim", "16"],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3", "expected options with lists of values"),
        ("{}", "expected options with lists of values"),
        ("model.std: 0.5", "model.std: 0.5, expected a list of values"),
        ("model.std: []", "expected a list of values"),
        ("model.std: [0.5, 0.50]", "the value 0.5 is there twice"),
        ("'--model.std': [1]", "expected the name of an option"),
        ("seed_everything: [1]", "is the sweep's own"),
        ("run.name: [a]", "is the sweep's own"),
        ("- {a: 1}\n- {b: 1}", "entry 2 is"),
        ("- 3", "entry 1 is 3, expected values of options"),
        ("- {a: 1}\n- {a: 1}", "two entries are the same"),
        ("model.n: [1, 2]", "is in .* and on the command line"),
    ],
)
def test_a_wrong_file_of_values(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        SweptOptions(["--model.init_args.n", "3"], file)


def test_too_many_combinations() -> None:
    numbers = ",".join(map(str, range(40)))
    with pytest.raises(ConfigurationError, match="1600 combinations of values, expected 1000 or fewer"):
        SweptOptions(["--a", numbers, "--b", numbers])
