"""The published evaluations, by name: which images, which masks, which rules.

`lightning-genesis test --protocol NAME` scores a protocol's images besides the whole split. What an
evaluation cannot do as published (fewer images, another size, synthetic data) is stored with its numbers.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from data_modules.base import Split
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.evaluation.split import EvaluatedSplit
from lightning_genesis.metrics import Convention

NUM_IMAGES = 10_000
"""Images, and samples, that FID compares in the GENESIS, GENESIS-V2 and SRI papers."""
LIKELIHOOD = "normalised density of pixels in [0, 1], one posterior sample"
"""Behind `elbo` and `bits_per_dim` here, whatever is trained: SRI-G is trained without the normalisation."""
NO_PUBLISHED_SPLIT = ("clevr6",)
"""Data of which no paper says what its 10 000 images for FID are."""
ProtocolName = Literal["genesis", "genesisv2", "sri", "sri-ablations", "emorl", "clevrtex"]


@dataclass(frozen=True)
class Protocol:
    """How a paper evaluates. Which images it drew is not published: ours have a seed of their own."""

    source: str
    """Paper and section."""
    split: Split
    num_images: int | None
    """Images that are scored; None for all. FID's number is an option of its own: `callbacks.fid`."""
    image_sizes: Mapping[str, int]
    """Side of the images, by dataset; the paper has no others."""
    masks: Literal["decoded", "attention", "not said"]
    """Which masks the paper's tables score; both kinds are always reported."""
    convention: Convention
    """Edge cases, a name in `metrics.CONVENTIONS`."""
    headline: tuple[str, ...]
    """What the paper's tables show, as the metrics are named here."""
    num_seeds: Mapping[str, int]
    """Trained models behind a published mean, by dataset; of those that are not here it is not said."""
    likelihood: str
    """Behind the paper's ELBO or bits per dimension; where it prints neither, what it trains."""
    enlarge: Literal["nearest", "bicubic"] = "nearest"
    """How masks smaller than the ground truth are brought to its size."""
    target_sizes: Mapping[str, int] = field(default_factory=dict)
    """Side of the ground truth, by dataset, where it is not that of the images."""
    matched: bool = False
    """Adds `miou`, `miou_fg`, `miou_gt` and the squared error summed over an image, `mse_sum`."""
    selection_seed: int = 0
    """Draws the images."""

    def rules(self, split: EvaluatedSplit) -> dict[str, Any]:
        """The table's column for the data of a split, plain; sizes are None where the paper has none."""
        rules = asdict(self)
        dataset, sizes, targets = self._dataset(split), rules.pop("image_sizes"), rules.pop("target_sizes")
        size = sizes.get(dataset)
        return rules | {
            "headline": list(self.headline_of(split.name)),
            "image_size": size,
            "target_size": targets.get(dataset, size),
            "num_seeds": self.num_seeds.get(dataset),
        }

    def _dataset(self, split: EvaluatedSplit) -> str:
        # EMORL's copies of several datasets share a data module
        return split.name if split.name in self.image_sizes else split.settings.get("variant", split.name)

    def headline_of(self, dataset: str) -> tuple[str, ...]:
        """What the paper's tables show for a dataset: for APC, with one object, scores of all pixels."""
        return tuple(name.replace("_fg", "") if dataset == "apc" else name for name in self.headline)

    def deviations(
        self, split: EvaluatedSplit, num_images: int, image_size: int, target_size: int | None
    ) -> list[str]:
        """In what an evaluation differs from the protocol, a line each.

        Args:
            split: what was evaluated.
            num_images: images behind the scores.
            image_size: their side.
            target_size: side of the ground truth; None if there is none.
        """
        dataset = self._dataset(split)
        lines = []
        if dataset not in self.image_sizes:
            lines.append(f"the paper does not evaluate {split.name}")
        elif (expected := self.image_sizes[dataset]) != image_size:
            lines.append(f"images of {image_size}x{image_size}, {expected}x{expected} in the protocol")
        expected = self.target_sizes.get(dataset, image_size)
        if target_size not in (None, expected):
            lines.append(
                f"masks scored at {target_size}x{target_size}, {expected}x{expected} in the protocol"
            )
        wanted = len(split) if self.num_images is None else self.num_images
        if num_images != wanted:
            lines.append(f"scores over {num_images} images, {wanted} in the protocol")
        return lines


_V2_SIZES = {"objects_room": 64, "shapestacks": 64, "sketchy": 128, "apc": 128}
_SRI_SIZES = {"clevr6": 96, "objects_room": 64, "shapestacks": 64}

PROTOCOLS: dict[ProtocolName, Protocol] = {
    "genesis": Protocol(
        source="GENESIS (ICLR 2020), Sections 4.2 and 4.4 and Table 2",
        split="test",
        num_images=300,
        image_sizes={"multi_dsprites": 64, "gqn": 64, "shapestacks": 64},
        masks="decoded",
        convention="genesis",
        headline=("ari_fg", "sc_fg", "msc_fg", "fid"),
        num_seeds={"shapestacks": 5},  # the segmentations of Section 4.2; Tables 1 and 2 do not say
        likelihood="none printed; trained: normalised density of pixels in [0, 1], a mixture per pixel",
    ),
    "genesisv2": Protocol(
        source="GENESIS-V2 (NeurIPS 2021), Section 4",
        split="test",
        num_images=320,
        image_sizes=_V2_SIZES,
        masks="not said",
        convention="genesis",
        headline=("ari_fg", "msc_fg", "elbo", "fid", "num_active", "num_active_mae"),
        num_seeds={"objects_room": 3, "shapestacks": 3, "sketchy": 1, "apc": 1},
        likelihood=f"ELBO in nats: {LIKELIHOOD}; of MONet-G with the decoded masks, without their KL",
    ),
    "sri": Protocol(
        source="SRI (2023), Section 5.3 and Table 2",
        split="test",
        num_images=320,
        image_sizes=_SRI_SIZES,
        masks="not said",
        convention="emorl",
        headline=("fid", "ari_fg", "s_acc"),
        num_seeds=dict.fromkeys(_SRI_SIZES, 3),
        likelihood="none printed; trained: mixture, normalised at σ 0.7, not at 0.1; Gaussian, which is not",
    ),
    "sri-ablations": Protocol(
        source="SRI (2023), Section 5.4 and Tables 1, 3 and 4",
        split="val",
        num_images=5000,
        image_sizes={"shapestacks": 64},
        masks="not said",
        convention="emorl",
        headline=("fid", "ari_fg", "bits_per_dim", "bits_per_dim_sri", "s_acc"),
        num_seeds={"shapestacks": 3},
        likelihood=f"bits per dimension: {LIKELIHOOD}, also of SRI-G; L_SRI has the cross-order KL in it",
    ),
    "emorl": Protocol(
        source="EfficientMORL (ICML 2021), Section 5 and its evaluation script",
        split="test",
        num_images=320,
        image_sizes={"clevr6": 96, "multi_dsprites": 64, "multi_dsprites_tfrecords": 64, "tetrominoes": 35},
        masks="decoded",
        convention="emorl",
        headline=("ari_fg", "mse", "kl"),
        num_seeds={},
        likelihood="none printed; trained without the normalisation; KL of the last refinement alone",
        enlarge="bicubic",
        target_sizes={"clevr6": 192},
    ),
    "clevrtex": Protocol(
        source="CLEVRTEX (NeurIPS 2021 Datasets and Benchmarks) and its evaluation",
        split="test",
        num_images=None,
        image_sizes={"clevrtex": 128},
        masks="not said",
        convention="scikit-learn",
        headline=("miou", "ari_fg", "mse_sum"),
        num_seeds={"clevrtex": 3},
        likelihood="none printed",
        matched=True,
    ),
}
"""Every protocol by its name on the command line."""
assert set(PROTOCOLS) == set(get_args(ProtocolName))


def find_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ConfigurationError: if there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigurationError(f"protocol: {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]  # type: ignore[index]


def general_deviations(split: EvaluatedSplit, fid: Mapping[str, Any]) -> list[str]:
    """In what the data and FID differ from all the papers', a line each; `fid` are `FIDCallback.options`."""
    # the size of the masks is the protocol's to judge: EMORL's asks for these
    lines = [line for line in split.remarks if line != "data: full_masks"]
    if fid and fid["num_images"] != NUM_IMAGES:
        lines.append(f"FID and KID over {fid['num_images']} images, {NUM_IMAGES} in the papers")
    if fid and "splits" in fid and split.name not in NO_PUBLISHED_SPLIT:
        lines.append(f"FID and KID against {' and '.join(fid['splits'])} images together")
    if fid and fid["temperature"] != 1:
        lines.append(f"samples at temperature {fid['temperature']}, 1 in the papers")
    return lines
