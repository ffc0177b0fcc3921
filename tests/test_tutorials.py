"""The notebooks of the documentation: every cell runs, in an empty folder; stored outputs are whole."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_layers import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def as_script(notebook: Path) -> str:
    """The cells as a program; what a cell ends with is made into what the notebook shows."""
    lines = []
    for cell in cells_of(notebook):
        tree = ast.parse("".join(cell["source"]))
        if isinstance(last := tree.body[-1], ast.Expr):
            shown = ast.Assign([ast.Name("shown", ast.Store())], last.value)
            tree.body[-1] = ast.fix_missing_locations(shown)
            lines.append(ast.unparse(tree))
            lines.append("getattr(shown, '_repr_png_', lambda: repr(shown))()")
        else:
            lines.append(ast.unparse(tree))
    return "\n".join(lines)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(as_script(notebook), notebook.name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stored(notebook: Path) -> None:
    """The site shows them; it runs nothing."""
    cells = cells_of(notebook)
    numbers = [cell["execution_count"] for cell in cells]
    assert numbers == list(range(1, len(cells) + 1)), "run all cells in order and save"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert "site-packages" not in notebook.read_text(), "a path of the machine that ran them"
    assert len(notebook.read_bytes()) < 500_000
