"""`lightning-genesis dashboard PROJECT`: a saved workspace for a project of W&B.

Its sections are learning, constraint, segmentation, generation, pictures and seeds. A panel is made where the
project's newest runs have logged what it shows; call it again when there is more. Every call makes a
workspace; those that are there stay as they are.
"""

import contextlib
import io
import itertools
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from lightning_genesis.commands.arguments import CommandParser
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.report.dashboard import make_workspace, panels_of
from lightning_genesis.runs.wandb_account import answers, has_key, server

NEWEST = 100
"""Runs that are asked what they have logged."""


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ConfigurationError: if W&B's library is missing, nobody is logged in, the server does not answer or
            refuses, or the project has nothing to show.
    """
    parser = CommandParser(prog="lightning-genesis dashboard", description=__doc__)
    parser.add_argument("project", help="as in W&B; runs are in `lightning-genesis` by default")
    parser.add_argument("--entity", help="user or team that owns it; your default one if not given")
    parser.add_argument("--name", default="Lightning Genesis", help="of the workspace")
    options = parser.parse_args(list(args))
    if find_spec("wandb_workspaces") is None:
        raise ConfigurationError(
            "dashboard: W&B's library of workspaces is missing: pip install 'lightning-genesis[dashboard]'"
        )
    if not has_key():
        raise ConfigurationError("dashboard: no account of W&B: run `wandb login`, or set WANDB_API_KEY")
    if not answers():
        raise ConfigurationError(f"dashboard: no connection to {server()}; is there a network?")
    print(build(options.project, options.entity, options.name))


def build(project: str, entity: str | None, name: str) -> str:
    """Saves a workspace.

    Args:
        project: of W&B.
        entity: who owns it; the account's default if None.
        name: of the workspace.

    Returns:
        what was made, and the address, in two lines.

    Raises:
        ConfigurationError: if the server refuses, or the project has nothing to show.
    """
    try:
        # its own lines would stand between ours
        with contextlib.redirect_stderr(io.StringIO()):
            return _build(project, entity, name)
    except ConfigurationError:
        raise
    except Exception as error:  # which of its errors is not documented
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        path = project if entity is None else f"{entity}/{project}"
        raise ConfigurationError(f"dashboard: {path}: W&B refuses: {reason}") from error


def _build(project: str, entity: str | None, name: str) -> str:
    import wandb

    api = wandb.Api()
    owner = entity or api.default_entity
    if owner is None:
        raise ConfigurationError("dashboard: the account has no default entity; give --entity")
    sections = panels_of(_logged(api, f"{owner}/{project}"))
    if not sections:
        raise ConfigurationError(
            f"dashboard: {owner}/{project}: no run there has logged anything that a panel shows; "
            "train first, and upload what was trained offline"
        )
    workspace = make_workspace(owner, project, name, sections).save()
    counts = ", ".join(f"{title} {len(panels)}" for title, panels in sections.items())
    return f"panels: {counts}\n{workspace.url}"


def _logged(api: Any, path: str) -> set[str]:
    """Everything that has a last value in one of the newest runs: what was logged once has one."""
    runs = api.runs(path, order="-created_at", per_page=NEWEST, lazy=False)
    return {name for run in itertools.islice(runs, NEWEST) for name in run.summary_metrics}
