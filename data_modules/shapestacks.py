"""ShapeStacks: towers of blocks, stable or not, from 16 cameras, as in GENESIS, GENESIS-V2 and SRI."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.base import SPLITS, Split
from data_modules.raw.archives import Limits, read_file, unpack_all
from data_modules.raw.pictures import read_picture
from data_modules.raw.raw_file import CHECKSUM, GZIP, RawFile
from data_modules.raw_source import RawSceneDataModule, first_of_each
from data_modules.store import Arrays, DataError
from data_modules.threads import in_order

SplitSet = Literal["default", "blocks_all", "ccs_all"]

SIDE = 224
CROP = 196
NUM_VIEWS = 16
MAX_BLOCKS = 6
NUM_IMAGES = 311_200
"""Images of 19,450 scenarios, as users of the data count them."""
RENDERER = 2
"""Of synthetic towers: 2 since they have the publisher's sizes, colours and cameras; not noted before."""
_MARGIN = (SIDE - CROP) // 2
_LEVEL = 32
_LISTS: dict[Split, str] = {"train": "train", "val": "eval", "test": "test"}
_URL = "http://shapestacks-file.robots.ox.ac.uk/static/download/v1"
_GB, _MB = 10**9, 10**6
_ARCHIVES: dict[str, tuple[int, Limits]] = {
    "shapestacks-meta.tar.gz": (156_000, Limits(16 * _MB, 2 * _GB, 10**5)),
    "shapestacks-iseg.tar.gz": (352 * _MB, Limits(2 * _MB, 16 * _GB, 10**6)),
    "shapestacks-rgb.tar.gz": (33 * _GB, Limits(2 * _MB, 64 * _GB, 2 * 10**6)),
}
_MAX_LIST_BYTES = 16 * _MB
_MAX_PICTURE_BYTES = 2 * _MB

_SCENARIO = re.compile(r"env_(?:blocks|ccs)-(?:easy|hard)-h=([2-6])-vcom=([0-6])-vpsf=([0-6])-v=\d+")
_FRAME = re.compile(r"rgb-w=\d+-f=\d+-l=\d+-c=\w+-cam_(\d+)-mono-0\.png")
# the folders that are read, whatever the archives have above them
_NEEDED = re.compile(
    r"(?:^|/)((?:splits/\w+/(?:train|eval|test)\.txt)|meta/blacklist_(?:stable|unstable)\.txt"
    r"|(?:recordings|iseg)/env_[\w=-]{1,80}/(?:rgb-[\w=-]{1,80}-mono-0\.png|iseg-w=0-f=0-l=0-c=original-cam_\d+-mono-0\.map))$"
)


@dataclass(frozen=True)
class Scenario:
    """What the name of a tower says."""

    name: str
    height: int
    """Number of blocks."""
    stable: bool
    """Whether neither a centre of mass nor a surface is violated."""


def read_name(name: str, where: str) -> Scenario:
    """Take a scenario's name apart.

    Raises:
        DataError: if it is not one; `where` says where it stands.
    """
    match = _SCENARIO.fullmatch(name)
    if match is None:
        raise DataError(f"{where}: {name[:80]!r}, expected a name such as env_ccs-hard-h=3-vcom=1-vpsf=0-v=5")
    height, mass, surface = (int(number) for number in match.groups())
    return Scenario(name, height, mass == 0 and surface == 0)


class ShapeStacks(RawSceneDataModule):
    """ShapeStacks (Groth et al., 2018): towers of two to six blocks, 16 views each.

    The published lists `train`, `eval` and `test` of scenarios are the splits; a scenario's 16 views follow
    each other in the order of the cameras. Centre crop of 196 pixels, resized to 64 by Pillow's bilinear
    filter, masks by PyTorch's rule for nearest (source index floor(i * 196 / 64)), as in the GENESIS code:
    they sit about a third of an output pixel up and left of the image.

    `segmentation` is 0 for all that is not a block, and `i` for block `i` from below. `labels` has
    `stability` (the publisher's: 0 stable, 1 unstable), `height` (number of blocks, 2 to 6; SRI's label is
    this minus 2) and `view` (camera, 1 to 16), each int64 `[B]`.

    Args:
        split_set: which of the published sets of lists.
        blacklist: leave out the scenarios that the publisher's blacklists name; the papers use the lists as
            they are.
        image_size: height and width.
        num_slots: the paper's K.
        options: the arguments of every data module, of `RawSceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "shapestacks"
    shows_towers = True
    # 70 / 15 / 15 percent of the scenarios; the lists themselves decide
    published: Mapping[Split, int] = {"train": 217_840, "val": 46_680, "test": 46_680}
    images_per_scene: ClassVar[int] = NUM_VIEWS
    subset_of = "scenarios"
    licence = "GPL-3.0"
    citation = (
        "Groth, Fuchs, Posner, Vedaldi: ShapeStacks: Learning Vision-Based Physical Intuition for "
        "Generalised Object "
        "Stacking, ECCV 2018, https://ogroth.github.io/shapestacks"
    )

    def __init__(
        self,
        split_set: SplitSet = "default",
        blacklist: bool = False,
        image_size: int = 64,
        num_slots: int = 9,
        **options: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            num_slots=num_slots,
            num_background=1,
            **options,
        )
        if split_set not in ("default", "blocks_all", "ccs_all"):
            raise DataError(f"split_set: {split_set!r}, expected default, blocks_all or ccs_all")
        if self.synthetic is not None and split_set != "default":
            raise DataError(f"split_set: {split_set}, expected default for synthetic towers")
        self.split_set: SplitSet = split_set
        self.blacklist = blacklist

    def tags(self) -> list[str]:
        """What differs from the paper's settings."""
        differing = {
            self.split_set: self.split_set != "default",
            f"{self.image_size}px": self.image_size != 64,
            "blacklist": self.blacklist,
            f"first{self.subset}": self.subset is not None,
        }
        return [tag for tag, differs in differing.items() if differs]

    def options(self) -> dict[str, Any]:
        """What the data depend on."""
        renderer = {} if self.synthetic is None else {"renderer": RENDERER}
        return {"split_set": self.split_set, "subset": self.subset, "blacklist": self.blacklist, **renderer}

    def raw_name(self) -> str:
        """Towers of an earlier renderer stay apart."""
        return super().raw_name() + ("" if self.synthetic is None else f"-renderer{RENDERER}")

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        return 4 * self.image_size**2 + 3 * 8

    def raw_files(self) -> list[RawFile]:
        """Lists, pictures and instance maps, and before them the publisher's checksums of each."""
        files = []
        for name, (size, _) in _ARCHIVES.items():
            sums = f"{name.partition('.')[0]}.md5"
            files.append(RawFile(sums, f"{_URL}/{sums}", about_bytes=60, format=CHECKSUM, optional=True))
            # the second name is what one may have called it oneself
            names = (sums, f"{name}.md5")
            files.append(RawFile(name, f"{_URL}/{name}", about_bytes=size, format=GZIP, checksum_names=names))
        return files

    def check_raw(self, folder: Path) -> None:
        """Check that the archives are there, or what is in them.

        Raises:
            DataError: if one is missing.
        """
        if (folder / "splits").is_dir():
            return
        for name in _ARCHIVES:
            if not (folder / name).is_file():
                raise DataError(
                    f"{folder / name}: missing, expected the archive of {_URL}, or the folders splits and "
                    "recordings"
                )

    def unpack(self, folder: Path) -> Path:
        """Where `splits`, `recordings` and maybe `iseg` are, or folders with one of them each.

        Raises:
            DataError: if an archive is missing, damaged or of something else.
        """
        if self.synthetic is not None or (folder / "splits").is_dir():
            return folder
        limits = {name: limits for name, (_, limits) in _ARCHIVES.items()}
        return unpack_all(self.name, folder, Path(self.root), limits, _place)

    def scenarios(self, folder: Path) -> dict[Split, list[Scenario]]:
        """Scenarios of each split in the lists' order.

        Raises:
            DataError: if a list is missing, damaged or names something in two splits.
        """
        excluded = self._blacklisted(folder) if self.blacklist else set()
        parts: dict[Split, list[Scenario]] = {}
        known: dict[str, Split] = {}
        for split, name in _LISTS.items():
            path = _find(folder, f"splits/{self.split_set}/{name}.txt")
            parts[split] = []
            for number, line in _lines(path):
                scenario = read_name(line, f"{path}: line {number}")
                if known.setdefault(line, split) != split or scenario in parts[split]:
                    raise DataError(f"{path}: line {number}: {line} is also in {known[line]}, expected once")
                if line not in excluded:
                    parts[split].append(scenario)
        return first_of_each(parts, self.subset)

    def _blacklisted(self, folder: Path) -> set[str]:
        return {
            line
            for kind in ("stable", "unstable")
            for _, line in _lines(_find(folder, f"meta/blacklist_{kind}.txt"))
        }

    def split_sizes(self, folder: Path) -> dict[Split, int]:
        """Number of images of each split.

        Raises:
            DataError: if a list is missing or damaged.
        """
        return {split: NUM_VIEWS * len(part) for split, part in self.scenarios(folder).items()}

    def note(self, sizes: Mapping[Split, int]) -> str | None:
        """What has to be said with results; the published lists are the splits, however long they are."""
        whole = self.synthetic is None and self.subset is None and not self.blacklist
        if whole and (self.split_set != "default" or sum(sizes.values()) == NUM_IMAGES):
            return None
        if self.synthetic is not None:
            return super().note(sizes)
        found = " / ".join(f"{sizes[split]:,}" for split in SPLITS)
        return (
            f"{found} images for training, validation and test of {NUM_IMAGES:,} published ones; "
            "say so with results"
        )

    def read_split(self, split: Split, folder: Path) -> Iterator[Arrays]:
        """A split's images, 16 at a time: one scenario.

        Raises:
            DataError: if a picture or map is missing, damaged or of another kind, or if maps show no blocks.
        """
        images = empty = 0
        for chunk in in_order(lambda scenario: self._read(scenario, folder), self.scenarios(folder)[split]):
            images += NUM_VIEWS
            empty += int((~chunk["segmentations"].any((1, 2))).sum())
            yield chunk
        if empty > max(1, images // 20):
            raise DataError(
                f"{folder}: {empty:,} of {images:,} maps of {split} show no block, expected next to none"
            )

    def _read(self, scenario: Scenario, folder: Path) -> Arrays:
        images = np.stack([self._image(path) for path in _frames(folder, scenario.name)])
        maps = [_find_map(folder, scenario.name, view) for view in range(1, NUM_VIEWS + 1)]
        segmentations = np.stack([self._segmentation(path) for path in maps])
        if not segmentations.any():
            raise DataError(f"{maps[0].parent}: no map shows a block, expected values of {_LEVEL} and above")
        labels = {"stability": int(not scenario.stable), "height": scenario.height}
        views = {f"labels.{key}": np.full(NUM_VIEWS, value, np.int64) for key, value in labels.items()}
        views["labels.view"] = np.arange(1, NUM_VIEWS + 1)
        return {"images": images, "segmentations": segmentations, **views}

    def _image(self, path: Path) -> NDArray[np.uint8]:
        picture = read_picture(read_file(path, _MAX_PICTURE_BYTES), str(path), "PNG", SIDE, SIDE)
        return crop_image(picture.convert("RGB"), self.image_size)

    def _segmentation(self, path: Path) -> NDArray[np.uint8]:
        """The instance map after crop and resize, `[S, S]`."""
        return crop_map(read_map(path), self.image_size)

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write towers of our own in the published layout."""
        from data_modules.synthesis import shapestacks

        shapestacks.write(folder, {str(split): size for split, size in sizes.items()}, seed)


def crop_image(picture: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """The middle of a publisher's picture, resized by Pillow's bilinear filter, `[S, S, 3]`."""
    picture = picture.crop((_MARGIN, _MARGIN, _MARGIN + CROP, _MARGIN + CROP))
    return np.asarray(picture.resize((image_size, image_size), Image.Resampling.BILINEAR))


def crop_map(labels: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """The middle of an instance map `[224, 224]`, resized by PyTorch's rule for nearest, `[S, S]`."""
    nearest = _MARGIN + np.arange(image_size) * CROP // image_size
    return labels[nearest[:, None], nearest]


def read_map(path: Path) -> NDArray[np.uint8]:
    """Read an instance map: a PNG under another name, grey, 32 times the number of the block, `[224, 224]`.

    By Pillow, since Matplotlib's reader has changed from 0..255 to 0..1, with which all numbers become 0.

    Raises:
        DataError: if it is missing, damaged, not grey or has other values.
    """
    picture = read_picture(read_file(path, _MAX_PICTURE_BYTES), str(path), "PNG", SIDE, SIDE)
    if picture.mode not in ("L", "LA", "P", "RGB", "RGBA"):
        raise DataError(f"{path}: a picture of mode {picture.mode}, expected RGBA with 8 bits")
    values = np.asarray(picture.convert("RGB"))
    if (values != values[..., :1]).any():
        raise DataError(f"{path}: has colours, expected an instance map in grey")
    labels = (values[..., 0] + np.uint16(_LEVEL // 2)) // _LEVEL
    off = np.abs(values[..., 0] - _LEVEL * labels.astype(np.int16)) > 2
    if off.any() or labels.max() > MAX_BLOCKS:
        odd = values[..., 0][off | (labels > MAX_BLOCKS)][0]
        raise DataError(f"{path}: value {odd}, expected multiples of {_LEVEL} up to {_LEVEL * MAX_BLOCKS}")
    return labels.astype(np.uint8)


def _place(name: str) -> str | None:
    """Where a member of an archive goes, if it is needed."""
    match = _NEEDED.search(name)
    return match[1] if match else None


def _roots(folder: Path) -> list[Path]:
    """Where the publisher's folders may be: each archive was unpacked to a folder of its own."""
    return [folder, *(folder / name.partition(".")[0] for name in _ARCHIVES)]


def _find(folder: Path, *paths: str) -> Path:
    """The first of some files that is there.

    Raises:
        DataError: if none is.
    """
    for path in paths:
        for root in _roots(folder):
            if (root / path).exists():
                return root / path
    raise DataError(f"{folder / paths[0]}: missing, expected the publisher's file")


def _frames(folder: Path, scenario: str) -> list[Path]:
    """Pictures of a scenario in the order of the cameras.

    Raises:
        DataError: if there is not one of every camera.
    """
    paths = [path for root in _roots(folder) for path in (root / "recordings" / scenario).glob("rgb-*.png")]
    found = [(int(match[1]), path) for path in paths if (match := _FRAME.fullmatch(path.name))]
    if sorted(view for view, _ in found) != list(range(1, NUM_VIEWS + 1)):
        raise DataError(
            f"{folder / 'recordings' / scenario}: {len(found)} pictures of {len(dict(found))} cameras, "
            f"expected one of each of {NUM_VIEWS}"
        )
    return [path for _, path in sorted(found)]


def _find_map(folder: Path, scenario: str, view: int) -> Path:
    """The one map of a camera, for all textures and lights: beside the pictures, or in a tree of its own.

    Raises:
        DataError: if there is none.
    """
    name = f"{scenario}/iseg-w=0-f=0-l=0-c=original-cam_{view}-mono-0.map"
    return _find(folder, f"recordings/{name}", f"iseg/{name}")


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not empty, with their numbers from 1."""
    try:
        text = read_file(path, _MAX_LIST_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text ({error.reason}), expected a list of scenarios") from error
    lines = (line.strip(" \r") for line in text.split("\n"))
    return [(number, line) for number, line in enumerate(lines, 1) if line]
