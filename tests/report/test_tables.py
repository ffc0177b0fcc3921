"""Statistics and tables of the report, against scipy, hand-made numbers and the papers."""

import csv
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.evaluation.protocols import PROTOCOLS
from lightning_genesis.report.cells import Cell, show_number, show_summary, summarise
from lightning_genesis.report.latex import to_latex
from lightning_genesis.report.names import METRICS, MODELS, metric_of, row_label
from lightning_genesis.report.published import find_published, read_published
from lightning_genesis.report.runs import read_run
from lightning_genesis.report.tables import Section, make_sections
from lightning_genesis.report.writers import to_csv, to_markdown
from lightning_genesis.runs.results import Checkpoint
from tests.report.fake_runs import add_result, make_run

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
V2 = "genesisv2_objectsroom"
SCORES = ({"ari_fg": 0.84}, {"ari_fg": 0.86}, {"ari_fg": 0.88})


def sections_of(folders: list[Path], protocol: str | None = None) -> tuple[list[Section], list[str]]:
    return make_sections([read_run(folder) for folder in folders], protocol)


def three_seeds(root: Path, **fields: object) -> list[Path]:
    return [make_run(root, V2, seed, metrics, **fields) for seed, metrics in enumerate(SCORES)]


def first_cell(section: Section) -> Cell:
    return next(iter(section.tables[0].rows[0].cells.values()))


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_summary_is_scipys(count: int) -> None:
    values = np.random.default_rng(count).normal(50, 3, count)
    summary = summarise(values.tolist())
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert summary.count == count
    assert summary.mean == pytest.approx(values.mean())
    assert summary.std == pytest.approx(math.sqrt(((values - values.mean()) ** 2).sum() / (count - 1)))
    assert summary.interval == pytest.approx((low, high))


def test_interval_of_three_by_the_printed_table() -> None:
    """Student's t of 2 degrees of freedom at 97.5 % is 4.303 in any printed table."""
    summary = summarise([1.0, 2.0, 3.0])
    assert summary.interval == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), abs=1e-3)


def test_one_seed_has_no_spread() -> None:
    summary = summarise([0.5])
    assert (summary.count, summary.mean, summary.std, summary.interval) == (1, 0.5, None, None)
    assert show_summary(summary, METRICS["ari_fg"]) == "0.500 (1)"


def test_numbers_have_a_minus_sign_and_no_negative_zero() -> None:
    assert show_number(-7019.25, 1) == "−7019.2"
    assert show_number(-0.0004, 2) == "0.00"
    assert show_number(0.02, 1, signed=True) == "0.0"
    assert show_number(0.5, 1, signed=True) == "+0.5"
    assert show_number(1234567.0, None) == "1.235e+06"


# ---------------------------------------------------------------- published values


def test_comparison_in_published_standard_deviations(tmp_path: Path) -> None:
    sections, problems = sections_of(three_seeds(tmp_path))
    (section,) = sections
    ((column, cell),) = section.tables[0].rows[0].cells.items()
    assert problems == []
    assert (column.dataset, column.metric, section.tables[0].rows[0].label) == (
        "objects_room",
        "ari_fg",
        "GENESIS-V2",
    )
    assert [(c.published.where, c.published.text) for c in cell.comparisons] == [
        ("Table 1", "0.85 ± 0.01"),
        ("Table 6", "0.84 ± 0.01"),
    ]
    assert [c.deviations for c in cell.comparisons] == pytest.approx([1.0, 2.0])


def test_no_division_by_a_printed_zero(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "monetg_objectsroom", 0, {"ari_fg": 0.5})
    (section,), _ = sections_of([folder])
    (comparison,) = first_cell(section).comparisons
    assert comparison.published.text == "0.54 ± 0.00"
    assert comparison.deviations is None
    assert comparison.difference == pytest.approx(-0.04)


def test_only_values_of_the_same_protocol_are_compared(tmp_path: Path) -> None:
    """ShapeStacks' ARI-FG of GENESIS is 0.73 in its own paper and 0.70 in GENESIS-V2's."""
    folder = make_run(tmp_path, "genesis_shapestacks", 0, {"ari_fg": 0.7}, protocol="genesis")
    add_result(folder, "genesis_shapestacks", 0, {"ari_fg": 0.7}, protocol=None)
    sections, _ = sections_of([folder])
    found = {
        section.protocol: [c.published.paper for c in first_cell(section).comparisons] for section in sections
    }
    assert found == {"genesis": ["GENESIS"], None: ["GENESIS", "GENESIS-V2", "SRI"]}


def published(experiment: str, metric: str) -> dict[tuple[str, str], tuple[str, int | None]]:
    return {
        (cell.protocol or "", cell.where): (cell.text, cell.seeds)
        for cell in find_published(experiment, metric, None)
    }


def test_what_sri_quotes_and_prints_twice() -> None:
    """papers/sri.md: Table 2 has GENESIS-V2's numbers under a star, Table 4 S-Acc of two models."""
    table_2 = ("sri", "Table 2, quoted from GENESIS-V2")
    for experiment, fid, ari_fg in (
        ("genesis_objectsroom", "62.8 ± 3", "0.63 ± 0.03"),
        ("genesisv2_objectsroom", "52.6 ± 3", "0.85 ± 0.01"),
        ("genesis_shapestacks", "186.8 ± 18", "0.70 ± 0.05"),
        ("genesisv2_shapestacks", "112.7 ± 3", "0.81 ± 0.00"),
    ):
        assert published(experiment, "fid")[table_2] == (fid, 3)
        assert published(experiment, "ari_fg")[table_2] == (ari_fg, 3)
    quoted = published("genesisv2_shapestacks", "fid")["genesisv2", "Table 3, as SRI quotes it"]
    assert quoted == ("112.7 ± 3", 3)
    assert published("srimog_shapestacks", "s_acc") == {
        ("sri", "Table 2, judged by eye"): ("80.7 ± 5.0", 3),
        ("sri-ablations", "Table 4, judged by eye"): ("80.7 ± 5.0", 3),
    }
    assert published("genesisv2_shapestacks", "s_acc") == {
        ("sri", "Table 2, released weights, judged by eye"): ("59", 1),
        ("sri-ablations", "Table 4, released weights, judged by eye"): ("59", 1),
    }


def test_fewer_seeds_than_the_papers_are_said(tmp_path: Path) -> None:
    folders = three_seeds(tmp_path)
    (section,), _ = sections_of(folders[:2])
    assert section.remarks == ["fewer seeds than behind the published means (GENESIS-V2: 2 of 3)"]
    (section,), _ = sections_of(folders)
    assert section.remarks == []


def test_wide_tables_are_one_for_each_dataset(tmp_path: Path) -> None:
    names = ("ari_fg", "ari_fg_attention", "msc_fg", "msc_fg_attention")
    metrics = dict(zip(names, (0.1, 0.2, 0.3, 0.4), strict=True))
    folders = [
        make_run(tmp_path, "genesisv2_objectsroom", 0, metrics, deviations=["another size"]),
        make_run(tmp_path, "genesis_objectsroom", 0, {"ari_fg": 0.5}),
        make_run(tmp_path, "genesisv2_shapestacks", 0, metrics, synthetic=True, deviations=["drawn"]),
    ]
    (section,), _ = sections_of(folders)
    assert [(table.title, [name for name, _ in table.groups()]) for table in section.tables] == [
        ("Segmentation, foreground: ObjectsRoom", ["ObjectsRoom"]),
        ("Segmentation, foreground: ShapeStacks †", ["ShapeStacks †"]),
    ]
    shown = [[(row.label, len(row.cells)) for row in table.rows] for table in section.tables]
    assert sorted(shown[0]) == [("GENESIS", 1), ("GENESIS-V2", 4)]
    assert shown[1] == [("GENESIS-V2", 4)]
    assert section.remarks[:2] == ["ObjectsRoom: another size (GENESIS-V2)", "ShapeStacks †: drawn"]
    (section,), _ = sections_of(folders[:2])
    assert [table.title for table in section.tables] == ["Segmentation, foreground"]


def test_published_values_are_known_everywhere() -> None:
    for cell in read_published():
        assert cell.protocol is None or cell.protocol in PROTOCOLS, cell
        assert cell.metric in METRICS, cell
        assert math.isfinite(cell.mean), cell
        assert cell.experiment.split("_")[0] in MODELS, cell
        assert isinstance(cell.text, str), cell
        assert (EXPERIMENTS / f"{cell.experiment}.yaml").is_file(), cell


@pytest.mark.parametrize("experiment", sorted({cell.experiment for cell in read_published()}))
def test_headers_of_the_experiments_agree(experiment: str) -> None:
    """The header has the published values, and no other means with a standard deviation."""
    lines = (EXPERIMENTS / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()
    header = " ".join(" ".join(line.lstrip("# ") for line in lines if line.startswith("#")).split())
    source, _, expected = header.partition("Source:")[2].partition("Expected:")
    expected = expected.partition("Hardware:")[0]
    cells = [cell for cell in read_published() if cell.experiment == experiment]
    for cell in cells:
        of_a_fixed_number = cell.metric.startswith("num_active") and cell.std == 0
        if re.search(rf"{cell.paper}(?![-\w])", source) and not of_a_fixed_number:
            # numbers stand alone: 24.9 is not in 124.9
            assert re.search(rf"(?<![\d.]){re.escape(cell.text)}(?!\d)", expected), cell
    assert set(re.findall(r"-?[\d.]+ ± [\d.]*\d", expected)) <= {cell.text for cell in cells}


# ---------------------------------------------------------------- what shares a cell


def test_order_of_runs_changes_nothing(tmp_path: Path) -> None:
    folders = three_seeds(tmp_path)
    (first,), _ = sections_of(folders)
    (second,), _ = sections_of(folders[::-1])
    one, other = (first_cell(section).summary for section in (first, second))
    assert one.mean == pytest.approx(other.mean, abs=1e-15)
    assert one.std == pytest.approx(other.std, abs=1e-15)


def test_protocols_get_sections_and_a_line_where_none_is_common(tmp_path: Path) -> None:
    first = make_run(tmp_path, "genesis_shapestacks", 0, {"ari_fg": 0.7}, protocol="genesis")
    second = make_run(tmp_path, "genesisv2_shapestacks", 0, {"ari_fg": 0.8}, protocol="genesisv2")
    sections, problems = sections_of([first, second])
    assert [section.title for section in sections] == ["Protocol genesis", "Protocol genesisv2"]
    assert [row.label for section in sections for row in section.tables[0].rows] == ["GENESIS", "GENESIS-V2"]
    (line,) = problems
    assert "shapestacks: no protocol is common" in line
    assert "genesis_shapestacks: genesis; genesisv2_shapestacks: genesisv2" in line

    add_result(first, "genesis_shapestacks", 0, {"ari_fg": 0.7}, protocol="genesisv2")
    sections, problems = sections_of([first, second])
    assert problems == []
    assert [len(section.tables[0].rows) for section in sections] == [1, 2]


def test_the_whole_split_that_every_test_writes_is_no_common_protocol(tmp_path: Path) -> None:
    runs = {"genesis_shapestacks": "genesis", "genesisv2_shapestacks": "genesisv2"}
    folders = []
    for experiment, protocol in runs.items():
        folders.append(make_run(tmp_path, experiment, 0, {"ari_fg": 0.7}, protocol=protocol))
        add_result(folders[-1], experiment, 0, {"ari_fg": 0.7}, protocol=None)
    _, (line,) = sections_of(folders)
    assert line == (
        "shapestacks: no protocol is common to all experiments (genesis_shapestacks: genesis; "
        "genesisv2_shapestacks: genesisv2): different tables show them"
    )
    assert sections_of(folders, "none")[1] == []

    plain = make_run(tmp_path, "srig_shapestacks", 0, {"ari_fg": 0.7}, protocol=None)
    _, (line,) = sections_of([folders[0], plain])
    assert "(genesis_shapestacks: genesis; srig_shapestacks: whole test)" in line
    whole = [make_run(tmp_path / "w", name, 0, {"ari_fg": 0.7}, protocol=None) for name in runs]
    assert sections_of(whole)[1] == []


def test_a_seed_without_the_protocol_is_named(tmp_path: Path) -> None:
    folders = three_seeds(tmp_path)
    folders.append(make_run(tmp_path, V2, 3, {"ari_fg": 0.1}, protocol=None))
    sections, problems = sections_of(folders)
    assert first_cell(sections[0]).summary.count == 3
    assert any(line.startswith(f"{folders[3]}: no numbers of protocol genesisv2") for line in problems)


def test_other_options_get_a_row_of_their_own_and_a_line(tmp_path: Path) -> None:
    folders = three_seeds(tmp_path)
    folders.append(make_run(tmp_path, V2, 3, {"ari_fg": 0.5}, num_images=100))
    (section,), problems = sections_of(folders)
    rows = {row.label: next(iter(row.cells.values())).summary.count for row in section.tables[0].rows}
    assert rows == {"GENESIS-V2 (num_images 320)": 3, "GENESIS-V2 (num_images 100)": 1}
    (line,) = problems
    assert "genesisv2_objectsroom: ARI-FG of its runs was evaluated with different num_images" in line


FIXED = {"model": {"flexible_slots": False, "min_pixels": 20.0}}
FLEXIBLE = {"model": {"flexible_slots": True, "min_pixels": 70.0}}


def compared(section: Section) -> dict[str, list[str]]:
    """Rows, and what their only cell is compared with."""
    (table,) = section.tables
    return {
        row.label: [f"{c.published.where}: {c.published.text}" for c in cell.comparisons]
        for row in table.rows
        for cell in row.cells.values()
    }


def test_two_ways_of_evaluating_every_seed_are_no_mistake(tmp_path: Path) -> None:
    """Table 2 of GENESIS-V2: the same weights with a fixed and a flexible number of slots."""
    folders = three_seeds(tmp_path, options=FIXED)
    for seed, folder in enumerate(folders):
        add_result(folder, V2, seed, {"ari_fg": 0.8}, options=FLEXIBLE)
    (section,), problems = sections_of(folders)
    assert problems == []
    assert compared(section) == {
        "GENESIS-V2 (flexible_slots false, min_pixels 20.0)": [
            "Table 1: 0.85 ± 0.01",
            "Table 6: 0.84 ± 0.01",
        ],
        "GENESIS-V2 (flexible_slots true, min_pixels 70.0)": ["Table 2: 0.84 ± 0.01"],
    }


@pytest.mark.parametrize(
    ("experiment", "options", "expected"),
    [
        (V2, FLEXIBLE, {"GENESIS-V2 (flexible_slots true)": ["Table 2: 0.84 ± 0.01"]}),
        (f"{V2}_flexible", FLEXIBLE, {"GENESIS-V2, flexible": ["Table 2: 0.84 ± 0.01"]}),
        (
            f"{V2}_flexible",
            FIXED,
            {
                "GENESIS-V2, flexible (flexible_slots false)": [
                    "Table 1: 0.85 ± 0.01",
                    "Table 6: 0.84 ± 0.01",
                ]
            },
        ),
        (f"{V2}_conv", FLEXIBLE, {"GENESIS-V2, conv (flexible_slots true)": []}),
        ("my_objectsroom", FLEXIBLE, {"my_objectsroom": []}),
    ],
)
def test_a_flexible_number_of_slots_is_compared_with_its_own_row(
    experiment: str, options: dict[str, object], expected: dict[str, list[str]], tmp_path: Path
) -> None:
    folder = make_run(tmp_path, experiment, 0, {"ari_fg": 0.8}, options=options)
    (section,), problems = sections_of([folder])
    assert problems == []
    assert compared(section) == expected


def test_results_from_before_the_models_values_were_stored(tmp_path: Path) -> None:
    old, new = three_seeds(tmp_path)[0], make_run(tmp_path, V2, 1, {"ari_fg": 0.8}, options={"num_slots": 7})
    add_result(old, V2, 0, {"ari_fg": 0.9}, options={"num_slots": 7, "fid": None, **FIXED})
    (section,), _ = sections_of([old])
    assert set(compared(section)) == {'GENESIS-V2 (model "not stored")', "GENESIS-V2"}
    headline = {"num_slots": 7, "headline": ["fid"], "masks": "decoded"}
    add_result(new, V2, 1, {"ari_fg": 0.7}, options=headline)
    assert set(compared(sections_of([new])[0][0])) == {"GENESIS-V2"}


def test_fid_of_some_seeds_does_not_part_their_scores(tmp_path: Path) -> None:
    folders = three_seeds(tmp_path)
    options = {"num_slots": 7, "fid": {"num_images": 10_000}}
    folders[2] = make_run(tmp_path / "b", V2, 2, {"ari_fg": 0.88, "fid": 50.0}, options=options)
    (section,), problems = sections_of(folders)
    counts = {
        column.metric: cell.summary.count
        for table in section.tables
        for row in table.rows
        for column, cell in row.cells.items()
    }
    assert problems == []
    assert counts == {"ari_fg": 3, "fid": 1}


def test_the_latest_weights_count(tmp_path: Path) -> None:
    folder = make_run(tmp_path, V2, 0, {"ari_fg": 0.9})
    for name, step, score in (("best", 500_000, 0.1), ("step-100", 100, 0.2)):
        checkpoint = Checkpoint(f"checkpoints/{name}.ckpt", "0" * 64, step)
        add_result(folder, V2, 0, {"ari_fg": score}, checkpoint=checkpoint)
    add_result(folder, V2, 0, {"ari_fg": 0.3}, checkpoint=None)
    (section,), _ = sections_of([folder])
    assert first_cell(section).summary.mean == 0.9


def test_a_seed_counts_once(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", V2, 0, {"ari_fg": 0.8})
    second = make_run(tmp_path / "b", V2, 0, {"ari_fg": 0.9})
    (section,), problems = sections_of([first, second])
    assert first_cell(section).summary.mean == 0.8
    assert problems == [f"{second}: seed 0 of genesisv2_objectsroom is also {first}: not counted twice"]


def test_synthetic_data_are_a_column_of_their_own_and_marked(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path, "genesisv2_shapestacks", 0, {"ari_fg": 0.8}, synthetic=True),
        make_run(tmp_path, "genesisv2_shapestacks", 1, {"ari_fg": 0.9}),
    ]
    (section,), _ = sections_of(folders)
    assert [name for name, _ in section.tables[0].groups()] == ["ShapeStacks †", "ShapeStacks"]
    assert [cell.summary.count for cell in section.tables[0].rows[0].cells.values()] == [1, 1]


def test_what_is_not_finite_is_left_out_and_named(tmp_path: Path) -> None:
    folders = three_seeds(tmp_path)
    folders.append(make_run(tmp_path, V2, 3, {"ari_fg": 0.9, "kl": math.inf}))
    (section,), problems = sections_of(folders)
    assert problems == [f"{folders[3]}: kl of protocol genesisv2 not finite: left out"]
    assert [table.title for table in section.tables] == ["Segmentation, foreground"]


def test_one_protocol_can_be_chosen(tmp_path: Path) -> None:
    folders = three_seeds(tmp_path)
    sections, _ = sections_of(folders, "genesisv2")
    assert [section.protocol for section in sections] == ["genesisv2"]
    with pytest.raises(
        ConfigurationError, match="no run has numbers of protocol 'none'; there are genesisv2"
    ):
        sections_of(folders, "none")


def test_labels() -> None:
    assert (
        row_label("genesisv2_shapestacks_maskloss_flexible", "shapestacks") == "GENESIS-V2, maskloss flexible"
    )
    assert row_label("genesis_objectsroom", "objects_room") == "GENESIS"
    assert row_label("genesis_objectsroom", "shapestacks") == "genesis_objectsroom"
    assert row_label("my-run", "shapestacks") == "my-run"
    assert metric_of("ari_fg_attention").label == "ARI-FG, attention"
    assert metric_of("something_new").decimals is None


# ---------------------------------------------------------------- files


def test_csv_has_every_number(tmp_path: Path) -> None:
    sections, _ = sections_of(three_seeds(tmp_path))
    rows = list(csv.DictReader(io.StringIO(to_csv(sections))))
    assert len(rows) == 2  # two published values of one cell
    assert float(rows[0]["mean"]) == pytest.approx(0.86)
    assert float(rows[0]["std"]) == pytest.approx(0.02)
    assert float(rows[0]["interval_high"]) == pytest.approx(0.86 + 4.302653 * 0.02 / math.sqrt(3))
    assert float(rows[1]["difference_in_std"]) == pytest.approx(2.0)
    assert rows[0]["seeds"] == "3"
    assert rows[0]["runs"].split() == [f"genesisv2_objectsroom-seed{seed}" for seed in range(3)]


def test_markdown_and_latex_hold_the_same_cells(tmp_path: Path) -> None:
    folders = three_seeds(tmp_path)
    folders.append(make_run(tmp_path, "odd_name|50%&$", 0, {"ari_fg": 0.5}, dataset="shape_stacks"))
    sections, problems = sections_of(folders)
    markdown, latex = to_markdown(sections, problems), to_latex(sections)
    headline, row = [line for line in markdown.splitlines() if line.startswith("| GENESIS-V2")]
    assert "0.860 ± 0.020 (3)<br>paper: 0.85 ± 0.01 |" in headline
    assert "0.860 ± 0.020 (3)<br>95 % 0.810 to 0.910<br>0.85 ± 0.01, +1.0 σ (GENESIS-V2, Table 1)" in row
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")}
    assert widths == {4}
    assert "odd\\_name\\|50%&$" in markdown

    assert latex.count(r".86$\pm$.02") == 2
    assert r"odd\_name\textbar{}50\%\&\$" in latex
    assert latex.count(r"\begin{") == latex.count(r"\end{")
    body = [line for line in latex.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {2}
    assert not set(latex) & set("±−σ†")


def test_published_file_says_what_it_means() -> None:
    """Values stay as printed only if YAML takes none of them for a number."""
    tables = yaml.safe_load(
        (EXPERIMENTS.parent / "lightning_genesis/report/published.yaml").read_text(encoding="utf-8")
    )
    for table in tables:
        assert set(table) <= {"paper", "where", "protocol", "seeds", "values"}
        for cells in table["values"].values():
            assert all(isinstance(text, str) for text in cells.values()), table
