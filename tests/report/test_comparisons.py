"""What the report says of rows together: the best, failed seeds, differences; and its LaTeX, compiled."""

import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lightning_genesis.report.cells import summarise
from lightning_genesis.report.comparisons import best_rows, differences, failed_seeds, welch_interval
from lightning_genesis.report.latex import escape, to_latex
from lightning_genesis.report.runs import read_run
from lightning_genesis.report.tables import Section, make_sections
from lightning_genesis.report.writers import to_markdown
from tests.report.fake_runs import add_result, make_run

MIXTURE = {"std": 0.7, "model": {"likelihood": "mixture"}}


def runs_of(root: Path, experiment: str, metric: str, values: list[float], **fields: object) -> list[Path]:
    return [make_run(root, experiment, seed, {metric: value}, **fields) for seed, value in enumerate(values)]


def section_of(folders: list[Path]) -> Section:
    (section,), _ = make_sections([read_run(folder) for folder in folders])
    return section


def best(folders: list[Path]) -> set[str]:
    (table,) = section_of(folders).headline
    return best_rows(table, table.columns[0])


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("ari_fg", {"genesis": 0.7, "genesisv2": 0.8}, {"GENESIS-V2"}),
        ("fid", {"genesis": 70.0, "genesisv2": 80.0}, {"GENESIS"}),
        ("ari_fg", {"genesis": 0.8001, "genesisv2": 0.7999, "monetg": 0.5}, {"GENESIS", "GENESIS-V2"}),
        ("ari_fg", {"genesis": 0.8001, "genesisv2": 0.7999}, set()),
        ("num_active", {"genesis": 3.0, "genesisv2": 7.0}, set()),
        ("ari_fg", {"genesis": 0.8}, set()),
    ],
)
def test_the_best_is_bold_and_what_looks_the_same(
    tmp_path: Path, metric: str, values: dict[str, float], expected: set[str]
) -> None:
    folders = [
        folder
        for model, value in values.items()
        for folder in runs_of(tmp_path, f"{model}_objectsroom", metric, [value])
    ]
    assert best(folders) == expected
    bold = re.findall(r"\| ([^|]+) \| \*\*", to_markdown([section_of(folders)], []))
    assert set(bold) == expected


def test_densities_are_named_and_never_compete(tmp_path: Path) -> None:
    """At a smaller σ the same error is another number of nats."""
    own = {"genesis": MIXTURE, "genesisv2": {**MIXTURE, "std": 0.1}, "monetg": MIXTURE}
    folders = [
        folder
        for model, options in own.items()
        for folder in runs_of(
            tmp_path, f"{model}_objectsroom", "elbo", [-7000.0 - len(model)], options=options
        )
    ]
    section = section_of(folders)
    (table,) = section.headline
    assert [row.label for row in table.rows] == [
        "GENESIS [mixture, σ 0.7]",
        "GENESIS-V2 [mixture, σ 0.1]",
        "MONet-G [mixture, σ 0.7]",
    ]
    assert any("different σ or likelihood" in remark for remark in section.remarks)
    assert best_rows(table, table.columns[0]) == {"MONet-G [mixture, σ 0.7]"}
    assert differences(table) == []
    alike = section_of([folders[0], folders[2]])
    assert [row.label for row in alike.headline[0].rows] == ["GENESIS", "MONet-G"]
    assert alike.remarks == [remark for remark in alike.remarks if "likelihood" not in remark]


def test_failed_seeds(tmp_path: Path) -> None:
    folders = runs_of(tmp_path, "genesisv2_objectsroom", "ari_fg", [0.59, 0.6, 0.9])
    (found,) = failed_seeds(section_of(folders).headline[0])
    assert (found.failed, found.seeds) == (1, 3)
    z = stats.norm.ppf(0.975)  # Wilson's interval, written out
    middle, spread = (1 / 3 + z**2 / 6) / (1 + z**2 / 3), z / (1 + z**2 / 3) * math.sqrt(2 / 27 + z**2 / 36)
    assert found.interval == pytest.approx((middle - spread, middle + spread))
    assert str(found).replace("\u00a0", " ") == (
        "GENESIS-V2, ObjectsRoom: 1 of 3 seeds failed (95 % 6 to 79 %)"
    )


def test_differences_are_welchs(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    one, other = noise.normal(0.8, 0.02, 5), noise.normal(0.6, 0.1, 3)
    interval = welch_interval(summarise(one.tolist()), summarise(other.tolist()))
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert interval == pytest.approx((expected.low, expected.high))
    assert welch_interval(summarise([1.0, 1.0]), summarise([2.0, 2.0])) == (-1.0, -1.0)
    assert welch_interval(summarise([1.0]), summarise([2.0, 2.0])) is None
    folders = [
        *runs_of(tmp_path, "genesisv2_objectsroom", "ari_fg", one.tolist()),
        *runs_of(tmp_path, "genesis_objectsroom", "ari_fg", other.tolist()),
    ]
    (found,) = differences(section_of(folders).headline[0])
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert str(found).startswith("ObjectsRoom, ARI-FG: GENESIS-V2 less GENESIS: ")


def test_of_many_rows_each_is_compared_with_the_first(tmp_path: Path) -> None:
    folders = []
    for number, model in enumerate(("genesis", "genesisv2", "monetg", "slotattention", "srig")):
        folders += runs_of(tmp_path, f"{model}_objectsroom", "ari_fg", [0.1 * number, 0.1 * number + 0.01])
    found = differences(section_of(folders).headline[0])
    assert [difference.first for difference in found] == ["GENESIS"] * 4


def test_the_headline_has_the_papers_columns(tmp_path: Path) -> None:
    metrics = {"ari_fg": 0.8, "ari_fg_attention": 0.7, "msc_fg": 0.6, "kl": 3.0, "fid": 50.0, "sc_fg": 0.5}
    folder = make_run(tmp_path, "genesisv2_objectsroom", 0, metrics)
    add_result(folder, "genesisv2_objectsroom", 0, {**metrics, "mse": 0.1}, protocol=None)
    rules = {"headline": ["kl"]}  # as stored with the result
    add_result(folder, "genesisv2_objectsroom", 0, metrics, protocol="genesis", rules=rules)
    sections, _ = make_sections([read_run(folder)])
    found = {s.protocol: [column.metric for column in s.headline[0].columns] for s in sections}
    assert found == {
        "genesisv2": ["ari_fg", "msc_fg", "fid"],
        "genesis": ["kl"],
        None: ["ari_fg", "msc_fg", "mse", "fid"],
    }


# ---------------------------------------------------------------- LaTeX


def test_cells_are_compact(tmp_path: Path) -> None:
    folders = [
        *runs_of(tmp_path, "genesisv2_objectsroom", "ari_fg", [0.84, 0.86]),
        *runs_of(tmp_path, "genesis_objectsroom", "ari_fg", [0.7]),
    ]
    text = to_latex([section_of(folders)])
    assert r"GENESIS-V2 & \textbf{.85$\pm$.01} \\" in text
    assert r"\quad as in GENESIS-V2 & .85$\pm$.01 \\" in text
    assert r"GENESIS & .70 \\" in text
    assert r"over 1 to 2 seeds" in text
    labels = re.findall(r"\\label\{(.*)\}", text)
    assert labels == ["tab:genesisv2-test", "tab:genesisv2-test-segmentation-foreground"]


def test_escapes() -> None:
    assert escape("a_b 50%") == r"a\_b 50\%"
    assert escape("σ 0.7 † −1 ± 2") == r"$\sigma$ 0.7 \dag{} $-$1 $\pm$ 2"
    assert escape("雪") == "?"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX found")
def test_latex_compiles(tmp_path: Path) -> None:
    """Every table, with names that are hard to set, without an error or an undefined command."""
    options = {**MIXTURE, "std": 0.1}
    folders = [
        *runs_of(tmp_path, "genesisv2_objectsroom", "elbo", [-7000.5, -7010.0], options=MIXTURE),
        *runs_of(tmp_path, "genesis_objectsroom", "elbo", [-6900.0, -6950.0], options=options),
        *runs_of(tmp_path, "my^odd~{name}\\x_50%&$#<|>é雪", "ari_fg", [0.5], synthetic=True),
    ]
    sections, _ = make_sections([read_run(folder) for folder in folders])
    (tmp_path / "tables.tex").write_text(to_latex(sections), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{tables}\\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "undefined" not in done.stdout.lower()
    assert "multiply defined" not in done.stdout
