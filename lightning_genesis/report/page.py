"""The report as one page that needs nothing else: pictures and curves are inside, and nothing is fetched."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from PIL import Image, ImageSequence

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.report.cells import Cell, cell_lines, headline_lines
from lightning_genesis.report.comparisons import best_rows, differences, failed_seeds
from lightning_genesis.report.curves import draw_charts
from lightning_genesis.report.names import Metric, metric_of, row_label
from lightning_genesis.report.runs import Run
from lightning_genesis.report.swept import draw_sweeps
from lightning_genesis.report.tables import Section, Table
from lightning_genesis.report.writers import LEGEND
from lightning_genesis.storage.pictures import open_picture
from lightning_genesis.storage.text import shown

TEMPLATE = Path(__file__).with_name("page.html")
QUALITY = 85
"""Of the pictures, which become WebP: a tenth of a PNG's size."""
MOST_PIXELS, MOST_FRAMES = 60_000_000, 1000
"""Of a picture, over all frames; more takes longer than a reader waits."""
SELECTED_BY = ("ari_fg", "elbo")
"""Pictures are of the seed that is best by the first of these that was evaluated."""
CAPTIONS = {
    "decomposition": "Step-by-step decomposition",
    "failures": "Failure cases: the worst by ELBO",
    "generation": "Step-by-step generation",
    "generation_order": "Order of generation, by the colours of the slots",
    "imagination": "Imagined scenes beside reconstructions",
    "inference_seeds": "The same images with several seeds of inference",
    "latent_traversal": "Latent traversal, slot by slot",
    "random_walk": "Random walk in the latent space",
    "reconstructions": "Reconstructions and segmentations, validation images",
    "samples": "Samples from the prior",
    "slots": "Samples with fewer and more slots",
    "structure_failures": "Samples that are no tower of blocks",
    "temperatures": "Samples at several temperatures",
    "test_reconstructions": "Reconstructions and segmentations, test images",
    "test_samples": "Samples from the prior",
}


@dataclass(frozen=True)
class Picture:
    """An image of the page."""

    caption: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in their seed."""

    name: str
    title: str
    runs: list[Run]
    charts: list[tuple[str, str]]
    pictures: list[Picture]
    pictured: str
    """Name of the run that the pictures are of."""
    selected: str
    """How that was chosen."""
    card: list[tuple[str, str]]
    """What the runs were made of and with."""


def render_page(runs: Sequence[Run], sections: Sequence[Section], problems: list[str]) -> str:
    """The page. A picture that cannot be read is left out, and added to `problems`."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.experiment, []).append(run)
    experiments = [_experiment(name, members, problems) for name, members in grouped.items()]
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        sections=sections,
        experiments=experiments,
        sweeps=draw_sweeps(runs),
        runs=runs,
        problems=problems,
        legend=LEGEND,
        cells=_cells,
        headline_cells=_headline_cells,
        failed_seeds=failed_seeds,
        differences=differences,
        metric_of=metric_of,
    )


def _headline_cells(table: Table) -> list[tuple[str, list[tuple[str, list[str], bool]]]]:
    return _cells(table, headline_lines)


def _cells(
    table: Table, say: Callable[[Cell | None, Metric], list[str]] = cell_lines
) -> list[tuple[str, list[tuple[str, list[str], bool]]]]:
    """Rows: label, and for each column its name, its lines, and whether it is the best."""
    best = {column: best_rows(table, column) for column in table.columns}
    return [
        (
            row.label.replace("σ ", "σ\u00a0"),
            [
                (
                    f"{column.group} {metric_of(column.metric).label}",
                    [_bound(line) for line in say(row.cells.get(column), metric_of(column.metric))],
                    row.label in best[column],
                )
                for column in table.columns
            ],
        )
        for row in table.rows
    ]


def _bound(line: str) -> str:
    """Keeps together on one line what is read together."""
    for mark in (" ± ", " σ", " %", " to ", "Table ", "paper: "):
        line = line.replace(mark, mark.replace(" ", "\u00a0"))
    return line


def _experiment(name: str, runs: list[Run], problems: list[str]) -> Experiment:
    datasets = dict.fromkeys(result.dataset for run in runs for result in run.results)
    title = next((label for dataset in datasets if (label := row_label(name, dataset)) != name), name)
    best, selected = _best(runs)
    return Experiment(
        name,
        title,
        runs,
        charts=draw_charts([run.history for run in runs]),
        pictures=[picture for path in best.pictures if (picture := _embed(path, problems))],
        pictured=best.name,
        selected=selected,
        card=_card(runs),
    )


def _card(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """A model card: names and texts; what differs between runs stands side by side."""
    cards = [run.card for run in runs if run.card is not None]
    if not cards:
        return []
    hours = [card.seconds / 3600 for card in cards]
    told = {
        "Parameters": [
            f"{card.parameters:,}" + (f", {card.trained:,} trained" if card.trained < card.parameters else "")
            for card in cards
        ],
        "Hardware": [card.hardware for card in cards],
        "Precision": [card.precision for card in cards],
        "Hours per run": [f"{min(hours):.3g}" if len(hours) < 2 else f"{min(hours):.3g} to {max(hours):.3g}"],
        "Hours in all": [f"{sum(hours):.3g}"] if len(hours) > 1 else [],
        "Steps": [f"{card.steps:,}" for card in cards],
        "Commit": [card.commit or "an installed package" for card in cards],
        "Versions": [", ".join(f"{name} {text}" for name, text in card.versions.items()) for card in cards],
        "Not known": [run.name for run in runs if run.card is None],
    }
    return [(name, "; ".join(dict.fromkeys(map(shown, texts)))) for name, texts in told.items() if texts]


def _best(runs: Sequence[Run]) -> tuple[Run, str]:
    """The run whose pictures are shown, as in GENESIS-V2: the best seed."""
    pictured = [run for run in runs if run.pictures] or list(runs)
    for name in SELECTED_BY:
        scores = {
            run.folder: max(values)
            for run in pictured
            if (values := [value for each in run.results if (value := each.metrics.get(name)) is not None])
        }
        if len(scores) == len(pictured) > 1:
            label = metric_of(name).label
            return max(pictured, key=lambda run: scores[run.folder]), f"the best of {len(runs)} by {label}"
    return pictured[0], "the only one with pictures" if len(pictured) < len(runs) else "the first one"


def _frames(image: Image.Image) -> list[Image.Image]:
    """The frames in colour; ValueError for more pixels than a figure has, before they are decoded."""
    frames: list[Image.Image] = []
    for frame in ImageSequence.Iterator(image):
        width, height = frame.size
        if width * height * (len(frames) + 1) > MOST_PIXELS or len(frames) == MOST_FRAMES:
            raise ValueError(f"{len(frames) + 1} or more frames of {width} x {height} pixels are too many")
        frames.append(frame.convert("RGB"))
    return frames


def _embed(path: Path, problems: list[str]) -> Picture | None:
    """A picture as WebP inside an address; an animation stays one."""
    content = io.BytesIO()
    try:
        with open_picture(path) as image:
            frames = _frames(image)
            size = frames[0].size
            duration = image.info.get("duration", 100)
            animation = {"save_all": True, "append_images": frames[1:], "duration": duration, "loop": 0}
            frames[0].save(content, "WEBP", quality=QUALITY, **(animation if len(frames) > 1 else {}))
    except ConfigurationError as error:
        problems.append(f"{error}: left out")
        return None
    name = path.stem.rpartition("-")[0] if path.stem.rpartition("-")[2].isdigit() else path.stem
    caption = CAPTIONS.get(name, name.replace("_", " "))
    data = base64.b64encode(content.getvalue()).decode()
    return Picture(caption, f"data:image/webp;base64,{data}", *size)
