"""What metrics, models and datasets are called in tables, and in which order they stand."""

from dataclasses import dataclass, replace
from typing import Literal

INFINITE = float("inf")
Best = Literal["high", "low"] | None
_SHARE, _PERCENT, _POSITIVE = (0.0, 1.0), (0.0, 100.0), (0.0, INFINITE)


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    label: str
    decimals: int | None
    """None: four significant digits."""
    factor: float = 1.0
    """From the unit of results to the one that is shown."""
    best: Best = None
    """Which end of it is; None where neither is."""
    range: tuple[float, float] = (-INFINITE, INFINITE)
    """That its values have, in the unit that is shown: no interval goes beyond."""


METRICS: dict[str, Metric] = {
    "ari_fg": Metric("ARI-FG", 3, 1.0, "high", (-1.0, 1.0)),
    "msc_fg": Metric("mSC-FG", 3, 1.0, "high", _SHARE),
    "sc_fg": Metric("SC-FG", 3, 1.0, "high", _SHARE),
    "ari": Metric("ARI", 3, 1.0, "high", (-1.0, 1.0)),
    "msc": Metric("mSC", 3, 1.0, "high", _SHARE),
    "sc": Metric("SC", 3, 1.0, "high", _SHARE),
    "miou": Metric("mIoU", 3, 1.0, "high", _SHARE),
    "miou_fg": Metric("mIoU-FG", 3, 1.0, "high", _SHARE),
    "miou_gt": Metric("mIoU, objects alone", 3, 1.0, "high", _SHARE),
    "elbo": Metric("ELBO (nats)", 1, best="high"),
    "bits_per_dim": Metric("−ELBO (bits/dim)", 3, best="low"),
    "importance_bound": Metric("IW bound (nats)", 1, best="high"),
    "importance_bits_per_dim": Metric("−IW bound (bits/dim)", 3, best="low"),
    "elbo_sri": Metric("−L_SRI (nats)", 1, best="high"),
    "bits_per_dim_sri": Metric("L_SRI (bits/dim)", 3, best="low"),
    "fid": Metric("FID", 1, 1.0, "low", _POSITIVE),
    "kid": Metric("KID", 4, best="low"),
    "s_acc": Metric("S-Acc (%)", 1, 100.0, "high", _PERCENT),
    "s_acc_low": Metric("S-Acc (%), from", 1, 100.0, None, _PERCENT),
    "s_acc_high": Metric("S-Acc (%), to", 1, 100.0, None, _PERCENT),
    "s_acc_stable": Metric("S-Acc (%), stable", 1, 100.0, "high", _PERCENT),
    "num_blocks": Metric("blocks", 2, range=_POSITIVE),
    "num_active": Metric("average K", 2, range=_POSITIVE),
    "num_active_mae": Metric("MAE of K", 2, 1.0, "low", _POSITIVE),
    "mse": Metric("MSE", 5, 1.0, "low", _POSITIVE),
    "mse_sum": Metric("squared error", 1, 1.0, "low", _POSITIVE),
    "nll": Metric("NLL (nats)", 1),
    "kl": Metric("KL (nats)", 1),
    "probe_stability": Metric("stability (%)", 1, 100.0, "high", _PERCENT),
    "probe_height": Metric("height (%)", 1, 100.0, "high", _PERCENT),
    "probe_view": Metric("view (%)", 1, 100.0, "high", _PERCENT),
}
"""Metrics by name, in their order; others are shown after them under their names."""
SUFFIXES = {
    "_attention": ", attention",
    "_round": ", rounded",
    "_chance": ", chance",
    "_true": ", true masks",
    "_reconstructed": ", reconstructed",
}
"""Of names of metrics, and what they add to the label."""
CONTROLS = ("_chance", "_true", "_reconstructed")
"""Suffixes of what a number is judged by; there is no best of these."""
DENSITIES = (
    *("elbo", "bits_per_dim", "importance_bound", "importance_bits_per_dim"),
    *("elbo_sri", "bits_per_dim_sri", "nll"),
)
"""Metrics that depend on the likelihood and its σ, beyond what the model has learnt."""
HEADLINE = ("ari_fg", "msc_fg", "elbo", "mse", "fid", "s_acc")
"""Of the whole split, which no paper's protocol has columns for."""
SAMPLES = ("fid", "kid")
_CONTROLS = ("true", "reconstructed")
_CONTROLLED = [f"{name}_{control}" for name in ("s_acc", "num_blocks") for control in _CONTROLS]
STRUCTURE = ("s_acc", "s_acc_low", "s_acc_high", "s_acc_stable", "num_blocks", *_CONTROLLED)
IMPORTANCE = ("importance_bound", "importance_bits_per_dim")
FAMILIES: dict[str, tuple[str, ...]] = {
    "Segmentation, foreground": ("ari_fg", "msc_fg", "sc_fg", "miou_fg"),
    "Segmentation, all pixels": ("ari", "msc", "sc", "miou", "miou_gt"),
    "Density": ("elbo", "bits_per_dim", *IMPORTANCE, "elbo_sri", "bits_per_dim_sri"),
    "Samples": SAMPLES,
    "Structure of samples": STRUCTURE,
    "Number of slots": ("num_active", "num_active_mae"),
    "Reconstruction": ("mse", "mse_sum", "nll", "kl"),
    "Representation": ("probe_stability", "probe_height", "probe_view"),
}
"""Tables of a section by their titles; `OTHERS` takes what is in none."""
OTHERS = "Other"

MODELS = {
    "bdvae": "BD-VAE",
    "dcvae": "DC-VAE",
    "emorl": "EfficientMORL",
    "genesis": "GENESIS",
    "genesiss": "GENESIS-S",
    "genesisv2": "GENESIS-V2",
    "genesisv2g": "GENESIS-V2-G",
    "monet": "MONet",
    "monetg": "MONet-G",
    "scenegenesis": "GENESIS + scene",
    "scenegenesisv2": "GENESIS-V2 + scene",
    "slotattention": "Slot Attention",
    "sri": "SRI",
    "sriemorl": "SRI-EMORL",
    "srig": "SRI-G",
    "srimog": "SRI-MoG",
    "srisa": "SRI-SA*",
}
"""The papers' names of models, by the first part of an experiment's name."""
DATASETS = {
    "apc": "APC",
    "clevr6": "CLEVR6",
    "clevrtex": "CLEVRTEX",
    "gqn": "GQN",
    "multi_dsprites": "Multi-dSprites",
    "objects_room": "ObjectsRoom",
    "shapestacks": "ShapeStacks",
    "sketchy": "Sketchy",
    "tetrominoes": "Tetrominoes",
}
"""The papers' names of datasets."""
SYNTHETIC = "†"
"""Marks images that this project rendered in place of a publisher's."""


def dataset_label(dataset: str, synthetic: bool) -> str:
    """Name of a dataset, marked if it is synthetic."""
    return DATASETS.get(dataset, dataset) + (f" {SYNTHETIC}" if synthetic else "")


def metric_of(name: str) -> Metric:
    """How a metric is shown, known or not."""
    for suffix, addition in SUFFIXES.items():
        base = name.removesuffix(suffix)
        if base != name and base in METRICS:
            known = METRICS[base]
            best = None if suffix in CONTROLS else known.best
            return replace(known, label=known.label + addition, best=best)
    return METRICS.get(name, Metric(name, None))


def row_label(experiment: str, dataset: str) -> str:
    """The paper's name of a model and our name of its variant; the experiment's, where it says neither."""
    base, _, swept = experiment.partition("-") if "=" in experiment else (experiment, "", "")
    model, _, rest = base.partition("_")
    on, _, variant = rest.partition("_")
    if model not in MODELS or on != dataset.replace("_", ""):
        return experiment
    parts = (MODELS[model], variant.replace("_", " "), swept.replace("=", " ").replace(",", ", "))
    return ", ".join(part for part in parts if part)


def family_of(name: str) -> str:
    """Title of the table that a metric stands in."""
    base = base_name(name)
    if name.startswith("probe_"):  # of whatever labels a dataset has
        return "Representation"
    return next((title for title, names in FAMILIES.items() if base in names), OTHERS)


def base_name(name: str) -> str:
    """Name of a metric without a suffix."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def metric_order(name: str) -> tuple[int, str]:
    """Sorts metrics."""
    known = list(METRICS)
    base = base_name(name)
    return known.index(base) if base in known else len(known), name
