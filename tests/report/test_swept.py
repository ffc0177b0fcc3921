"""Charts over swept values: which runs, in which order, with which intervals."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lightning_genesis.report.cells import summarise
from lightning_genesis.report.names import metric_of
from lightning_genesis.report.runs import Run, read_run
from lightning_genesis.report.swept import Line, SweepCharts, draw_over_values, draw_sweeps, in_order
from lightning_genesis.runs.sweep_state import SweepState, read_state, write_state
from tests.report.fake_runs import add_result, make_run

SCORES = {"0.3": (0.5, 0.6), "0.5": (0.7, 0.72), "0.7": (0.85,)}


def swept_runs(root: Path, options: dict[str, str] | None = None, **fields: object) -> list[Run]:
    runs = []
    for std, scores in SCORES.items():
        for seed, score in enumerate(scores):
            values = {"model.std": std, **(options or {})}
            name = ",".join(f"{option.rpartition('.')[2]}={value}" for option, value in values.items())
            experiment = f"genesisv2_objectsroom-{name}"
            folder = make_run(root, experiment, seed)
            add_result(folder, experiment, seed, {"ari_fg": score}, dataset="objects_room", **fields)
            write_state(folder, SweepState("0" * 64, ["fit", "test"], "genesisv2_objectsroom", None, values))
            runs.append(read_run(folder))
    return runs


def one(found: list[SweepCharts]) -> SweepCharts:
    assert len(found) == 1
    return found[0]


def test_a_chart_has_a_mean_and_an_interval_for_every_value(tmp_path: Path) -> None:
    sweep = one(draw_sweeps(swept_runs(tmp_path)))
    assert sweep.title == "Sweep genesisv2_objectsroom"
    assert sweep.note == "Numbers of protocol genesisv2."
    ((title, svg),) = sweep.charts
    assert title == "ARI-FG over std"
    means = re.findall(r'class="dot series0" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert len(means) == 3
    across = [float(x) for x, _ in means]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2), "0.3, 0.5, 0.7 to scale"
    heights = [float(y) for _, y in means]
    assert heights == sorted(heights, reverse=True), "a better score stands higher"
    assert svg.count('class="one ') == 5
    assert len(re.findall(r'class="mean series0" d="M([\d.]+) [\d.]+L\1 [\d.]+"', svg)) == 2, (
        "one seed has none"
    )


def test_lines_of_other_options_and_a_sweep_each(tmp_path: Path) -> None:
    runs = swept_runs(tmp_path, {"model.objective": "GECO"}) + swept_runs(
        tmp_path, {"model.objective": "SRI"}
    )
    sweep = one(draw_sweeps(runs))
    assert [title for title, _ in sweep.charts] == ["ARI-FG over std", "ARI-FG over objective"]
    assert "objective GECO" in sweep.charts[0][1]
    assert "std 0.5" in sweep.charts[1][1]
    both = draw_sweeps(runs + swept_runs(tmp_path / "alone"))
    assert len(both) == 2


def test_runs_of_no_sweep_and_one_value_alone_have_no_chart(tmp_path: Path) -> None:
    assert draw_sweeps([read_run(make_run(tmp_path, "genesis_gqn", 0, {"ari_fg": 0.3}))]) == []
    assert draw_sweeps([run for run in swept_runs(tmp_path) if run.swept.values["model.std"] == "0.3"]) == []


def test_the_protocol_that_most_runs_share(tmp_path: Path) -> None:
    runs = swept_runs(tmp_path)
    for run in runs:
        add_result(run.folder, run.experiment, 0, {"ari_fg": 0.1}, dataset="objects_room", protocol=None)
    again = [read_run(run.folder) for run in runs]
    assert one(draw_sweeps(again)).charts == one(draw_sweeps(runs)).charts


def test_order_of_values() -> None:
    assert in_order(["10", "9", "1e-3", "b", "-1", "a", "nan"]) == ["-1", "1e-3", "9", "10", "a", "b", "nan"]


def places(svg: str) -> list[float]:
    return [float(x) for x in re.findall(r'class="dot series0" cx="([\d.]+)"', svg)]


def test_axes_of_wide_ranges_and_of_words() -> None:
    def chart(values: list[str]) -> str:
        line = Line("", {value: [0.1 * number] for number, value in enumerate(values)})
        return draw_over_values("t", "option", values, [line], metric_of("ari_fg"))

    wide = chart(["1e-4", "1e-3", "1e-2"])
    assert "option (logarithmic)" in wide
    assert np.ptp(np.diff(places(wide))) < 0.2
    words = chart(["mylab.models.GECO", "FixedBeta<b>"])
    assert ">GECO</text>" in words
    assert "<b>" not in words


@pytest.mark.parametrize(("name", "values", "ends"), [
    ("ari_fg", [0.95, 1.0, 0.99], (None, 1.0)),
    ("fid", [1.0, 9.0], (0.0, None)),
    ("s_acc", [0.5, 99.0], (0.0, 100.0)),
    ("elbo", [-7000.0, -7010.0], (None, None)),
])  # fmt: skip
def test_an_interval_ends_with_the_range_of_its_score(
    name: str, values: list[float], ends: tuple[float | None, float | None]
) -> None:
    free = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    found = summarise(values, metric_of(name)).interval
    assert found is not None
    for bound, unbounded, end in zip(found, free, ends, strict=True):
        assert bound == pytest.approx(unbounded if end is None else end)
    assert found[0] <= np.mean(values) <= found[1]
    assert not math.isnan(found[0])


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"config_sha256": 1}', '{"config_sha256": "a", "finished": [1]}',
     '{"config_sha256": "a", "finished": [], "values": {"a": 1}}'],
)  # fmt: skip
def test_a_damaged_state_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert read_state(tmp_path) is None
    state = SweepState("0", ["fit"], "s", 3, {"model.std": "0.5"})
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
