"""A W&B workspace for a project of runs: named sections of panels, each of which has data."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, Literal

from lightning_genesis.runs.loggers import WANDB_AXIS

EXPERIMENT = "experiment"
"""The entry of a run's configuration in W&B that its seeds have in common."""
BRANCH = "{branch}"
"""In a metric and a title: a part of the loss, as a model names it; there is a panel for each."""


@dataclass(frozen=True)
class Panel:
    """What a panel shows."""

    title: str
    metrics: tuple[str, ...]
    """Names as they are logged; `*` stands for any end of one."""
    kind: Literal["lines", "bars", "media", "table"] = "lines"
    """Curves over steps, one bar for each run, pictures with a slider over steps, a table of a run."""
    over_seeds: bool = False
    """Whether the seeds of an experiment are one curve or bar, their mean with the standard deviation."""


def _lines(title: str, *metrics: str) -> Panel:
    return Panel(title, metrics)


def _bars(title: str, *metrics: str) -> Panel:
    return Panel(title, metrics, "bars")


def _media(title: str, name: str) -> Panel:
    return Panel(title, (f"pictures/{name}",), "media")


def _seeds(panel: Panel) -> Panel:
    return replace(panel, over_seeds=True)


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "learning": (
        _lines("loss (nats per image)", "train/loss"),
        _lines("ELBO (nats per image)", "train/elbo", "val/elbo"),
        _lines("NLL (nats per dimension)", "train/nll_per_dim"),
        _lines("KL (nats per image)", "train/kl", "train/kl_*"),
        _lines("squared error, validation", "val/mse"),
        _lines("images per second", "time/images_per_second"),
        _lines("share of time spent waiting for data", "time/data_fraction"),
    ),
    "constraint": (
        _lines(f"{BRANCH}: error and goal", f"geco/{BRANCH}/nll_average", f"geco/{BRANCH}/goal"),
        _lines(f"{BRANCH}: β", f"geco/{BRANCH}/beta"),
    ),
    "segmentation": (
        _lines("ARI-FG, decoded and attention", "val/ari_fg", "val/ari_fg_attention"),
        _lines("mSC-FG, decoded and attention", "val/msc_fg", "val/msc_fg_attention"),
        _lines("ARI with background", "val/ari", "val/ari_attention"),
        _lines("slots in use", "val/num_active"),
        _lines("slots in use, distance to objects + 1", "val/num_active_mae"),
        _bars("ARI-FG, test", "test/ari_fg", "test/ari_fg_attention"),
        _bars("mSC-FG, test", "test/msc_fg", "test/msc_fg_attention"),
    ),
    "generation": (
        _media("samples", "samples"),
        _lines("bits per dimension", "val/bits_per_dim"),
        _bars("bits per dimension, test", "test/bits_per_dim", "test/importance_bits_per_dim"),
        _bars("FID, test", "test/fid"),
        _bars("KID, test", "test/kid"),
        _bars("structural accuracy, test", "test/s_acc"),
    ),
    "pictures": (
        _media("reconstructions", "reconstructions"),
        _media("imagination", "imagination"),
        _media("initial masks", "initial_masks"),
        _media("walk through the prior", "random_walk"),
        _media("reconstructions, test", "test_reconstructions"),
        _media("samples, test", "test_samples"),
    ),
    "seeds": (
        _seeds(_lines("ARI-FG over seeds", "val/ari_fg")),
        _seeds(_lines("ELBO over seeds", "val/elbo")),
        _seeds(_lines("squared error over seeds", "val/mse")),
        _seeds(_bars("ARI-FG over seeds, test", "test/ari_fg")),
        _seeds(_bars("mSC-FG over seeds, test", "test/msc_fg")),
        _seeds(_bars("FID over seeds, test", "test/fid")),
        Panel("results of a run", ("tables/*",), "table"),
    ),
}
"""Sections in their order."""

MOST_RUNS = 50
"""In a panel."""
COLUMNS = ("val/ari_fg.max", "val/elbo.max", "val/mse.min", "test/ari_fg")
"""Of the list of runs, beside their names."""


def panels_of(logged: Collection[str]) -> dict[str, list[Panel]]:
    """The sections and panels that have data; their metrics are whole names, all of them logged.

    Args:
        logged: names of everything that the runs of a project have logged.
    """
    branches = sorted({name.split("/")[1] for name in logged if name.startswith("geco/")})
    found: dict[str, list[Panel]] = {}
    for section, panels in SECTIONS.items():
        kept = [made for panel in panels for made in _made(panel, branches, logged)]
        if kept:
            found[section] = kept
    return found


def _made(panel: Panel, branches: Collection[str], logged: Collection[str]) -> Iterator[Panel]:
    for branch in branches if BRANCH in panel.title else ("",):
        wanted = [metric.replace(BRANCH, branch) for metric in panel.metrics]
        names = [name for pattern in wanted for name in sorted(logged) if fnmatchcase(name, pattern)]
        metrics = tuple(dict.fromkeys(names))
        title = panel.title.replace(BRANCH, branch)
        if panel.kind == "table":  # W&B's panel has room for one
            yield from (replace(panel, title=name, metrics=(name,)) for name in metrics)
        elif metrics:
            yield replace(panel, title=title, metrics=metrics)


def make_workspace(entity: str, project: str, name: str, sections: dict[str, list[Panel]]) -> Any:
    """The workspace as `wandb_workspaces.workspaces.Workspace`, not yet saved.

    Args:
        entity: who owns the project, a user or a team.
        project: its name.
        name: of the workspace.
        sections: what `panels_of` gives.

    Raises:
        ImportError: if W&B's library of workspaces is not installed.
    """
    ws: Any = import_module("wandb_workspaces.workspaces")
    shown = {metric for panels in sections.values() for panel in panels for metric in panel.metrics}
    columns = [f"summary:{column}" for column in COLUMNS if column.partition(".")[0] in shown]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=title, panels=[_panel(panel) for panel in panels], is_open=True)
            for title, panels in sections.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=WANDB_AXIS, max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(pinned_columns=columns),
    )


def _panel(panel: Panel) -> Any:
    wr: Any = import_module("wandb_workspaces.reports.v2")
    grouped: dict[str, Any] = {}
    if panel.over_seeds:
        grouped = {
            "groupby": wr.Config(EXPERIMENT),
            "groupby_aggfunc": "mean",
            "groupby_rangefunc": "stddev",
        }
    if panel.kind == "lines":
        return wr.LinePlot(title=panel.title, x=WANDB_AXIS, y=[*panel.metrics], **grouped)
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=[*panel.metrics], **grouped)
    if panel.kind == "media":
        return wr.MediaBrowser(title=panel.title, media_keys=[*panel.metrics], num_columns=1)
    return wr.WeavePanelSummaryTable(table_name=panel.metrics[0])
