"""What metrics, models and datasets are called in tables, and in which order they stand."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    label: str
    decimals: int | None
    """None: four significant digits."""
    factor: float = 1.0
    """From the unit of results to the one that is shown."""


_SCORES = {"ari": "ARI", "msc": "mSC", "sc": "SC"}
METRICS: dict[str, Metric] = {
    **{f"{name}_fg": Metric(f"{label}-FG", 3) for name, label in _SCORES.items()},
    **{name: Metric(label, 3) for name, label in _SCORES.items()},
    "miou": Metric("mIoU", 3),
    "miou_fg": Metric("mIoU-FG", 3),
    "miou_gt": Metric("mIoU, objects alone", 3),
    "elbo": Metric("ELBO (nats)", 1),
    "bits_per_dim": Metric("−ELBO (bits/dim)", 3),
    "importance_bound": Metric("IW bound (nats)", 1),
    "importance_bits_per_dim": Metric("−IW bound (bits/dim)", 3),
    "elbo_sri": Metric("−L_SRI (nats)", 1),
    "bits_per_dim_sri": Metric("L_SRI (bits/dim)", 3),
    "fid": Metric("FID", 1),
    "kid": Metric("KID", 4),
    "s_acc": Metric("S-Acc (%)", 1, 100.0),
    "s_acc_low": Metric("S-Acc (%), from", 1, 100.0),
    "s_acc_high": Metric("S-Acc (%), to", 1, 100.0),
    "s_acc_stable": Metric("S-Acc (%), stable", 1, 100.0),
    "num_blocks": Metric("blocks", 2),
    "num_active": Metric("average K", 2),
    "num_active_mae": Metric("MAE of K", 2),
    "mse": Metric("MSE", 5),
    "mse_sum": Metric("squared error", 1),
    "nll": Metric("NLL (nats)", 1),
    "kl": Metric("KL (nats)", 1),
    "probe_stability": Metric("stability (%)", 1, 100.0),
    "probe_height": Metric("height (%)", 1, 100.0),
    "probe_view": Metric("view (%)", 1, 100.0),
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
            return Metric(known.label + addition, known.decimals, known.factor)
    return METRICS.get(name, Metric(name, None))


def row_label(experiment: str, dataset: str) -> str:
    """The paper's name of a model and our name of its variant; the experiment's, where it says neither."""
    model, _, rest = experiment.partition("_")
    on, _, variant = rest.partition("_")
    if model not in MODELS or on != dataset.replace("_", ""):
        return experiment
    return MODELS[model] + (f", {variant.replace('_', ' ')}" if variant else "")


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
