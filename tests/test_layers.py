"""The rooms of the package, and that imports go one way."""

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lightning_genesis", "data_modules")
ROOMS: tuple[tuple[str, ...], ...] = (
    ("lightning_genesis.errors", "lightning_genesis"),
    ("lightning_genesis.precision", "lightning_genesis.scene"),
    ("lightning_genesis.bounds",),
    ("lightning_genesis.classes", "lightning_genesis.storage"),
    ("data_modules",),
    ("lightning_genesis.layers", "lightning_genesis.objectives", "lightning_genesis.metrics"),
    ("lightning_genesis.optimization",),
    # what every model brings to its Trainer: the gate, and what moves the objective
    ("lightning_genesis.callbacks.checkpoints", "lightning_genesis.callbacks.host_copy"),
    ("lightning_genesis.callbacks.finite_gate", "lightning_genesis.callbacks.geco"),
    ("lightning_genesis.models",),
    ("lightning_genesis.interop",),
    ("lightning_genesis.priors",),
    ("lightning_genesis.runs",),
    ("lightning_genesis.figures",),
    ("lightning_genesis.evaluation",),
    ("lightning_genesis.callbacks",),
    ("lightning_genesis.report",),
    ("lightning_genesis.commands",),
    ("lightning_genesis.cli",),
    # a program of its own, which `sweep` starts
    ("lightning_genesis.commands.read_configurations",),
)
"""From the ground up: a room knows those below it and itself, none above, and none beside it."""
LAZY = {("lightning_genesis", "lightning_genesis.runs.loading")}
"""`lightning_genesis.load` is looked up when it is asked for."""
FORBIDDEN = (
    ("lightning_genesis.models", "lightning_genesis.runs"),
    ("data_modules", "lightning_genesis.models"),
)
"""Arrows that must never come, whatever becomes of the order above."""
MOST_LINES = 450


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, source: str, known: Iterable[str]) -> set[str]:
    """Modules of ours that a module imports anywhere, in functions too, but not for types alone."""
    known, tree, found = set(known), ast.parse(source), set()
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= whole or ({node.module} & known)
    return {other for other in found - {name} if (name, other) not in LAZY}


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, path.read_text(encoding="utf-8"), known) for name, path in known.items()}


def room_of(module: str) -> tuple[int, str]:
    """Height and name of the room of a module: the longest name that it lies in."""
    rooms = [(height, room) for height, names in enumerate(ROOMS) for room in names]
    inside = [(height, room) for height, room in rooms if f"{module}.".startswith(f"{room}.")]
    height, room = max(inside, key=lambda found: len(found[1]))
    if room == "lightning_genesis" and module != room:
        raise AssertionError(f"{module} lies in no room: name one in tests/test_layers.py")
    return height, room


def wrong_arrows(found: Mapping[str, set[str]]) -> list[str]:
    wrong = []
    for name, others in found.items():
        height, room = room_of(name)
        for other in sorted(others):
            other_height, other_room = room_of(other)
            if other_room != room and other_height >= height:
                wrong.append(f"{name} -> {other}")
    return wrong


def test_imports_go_one_way() -> None:
    found = graph()
    assert wrong_arrows(found) == []
    for above, below in FORBIDDEN:
        arrows = [(a, b) for a, others in found.items() for b in others if a.startswith(above)]
        assert not [arrow for arrow in arrows if arrow[1].startswith(below)]


def test_there_is_no_circle() -> None:
    try:
        order = [*TopologicalSorter(graph()).static_order()]
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")
    assert order.index("lightning_genesis.scene") < order.index("lightning_genesis.models.base")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("lightning_genesis.models.base", "from lightning_genesis.runs.run import find_file"),
        ("lightning_genesis.callbacks.fid", "from lightning_genesis.commands import sample"),
        ("lightning_genesis.scene", "import lightning_genesis.errors\nimport lightning_genesis.models"),
        ("data_modules.base", "def late():\n    from lightning_genesis.models import SceneModel"),
        ("lightning_genesis.layers.unet", "from lightning_genesis.metrics import count_pixels"),
    ],
)
def test_a_planted_import_against_the_order_is_found(module: str, line: str) -> None:
    known = modules()
    source = f"{known[module].read_text(encoding='utf-8')}\n{line}\n"
    assert wrong_arrows({module: imports(module, source, known)})


def test_the_root_holds_the_contracts_and_little_else() -> None:
    assert len([*(ROOT / "lightning_genesis").glob("*.py")]) <= 8


def test_no_file_holds_two_ideas() -> None:
    long = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    allowed = {"lightning_genesis.models.emorl"}  # one system, as the docstring says
    assert {name for name, lines in long.items() if lines > MOST_LINES} <= allowed
