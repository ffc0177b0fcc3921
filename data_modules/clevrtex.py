"""CLEVRTEX: 3 to 10 textured objects on a textured floor; its out-of-distribution and camouflage sets."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.base import SPLITS, Split
from data_modules.raw.archives import FolderTree, Limits, unpack_all
from data_modules.raw.download import RawFile
from data_modules.raw.pictures import read_picture
from data_modules.raw_source import RawSceneDataModule, first_of_each, share_out
from data_modules.store import Arrays, DataError
from data_modules.threads import in_order

Which = Literal["full", "outd", "camo"]

HEIGHT, WIDTH = 240, 320
CROP = 192
"""Side of the middle that is used: 0.8 of the shorter side."""
MAX_OBJECTS = 10
_URL = "https://thor.robots.ox.ac.uk/datasets/clevrtex"
_PUBLISHED: Mapping[Which, Mapping[Split, int]] = {
    "full": {"train": 40_000, "val": 5_000, "test": 5_000},
    "camo": {"train": 8_000, "val": 1_000, "test": 1_000},
    "outd": {"train": 0, "val": 0, "test": 10_000},
}
_ARCHIVES: Mapping[Which, tuple[str, ...]] = {
    "full": tuple(f"clevrtex_full_part{number}.tar.gz" for number in range(1, 6)),
    "camo": ("clevrtex_camo.tar.gz",),
    "outd": ("clevrtex_outd.tar.gz",),
}
_ARCHIVE_BYTES = 7_600_000_000
"""Of 10,000 scenes: all parts of `full` have 38 GB by one source, 23 GB by another."""
_LIMITS = Limits(member_bytes=16 * 10**6, total_bytes=200 * 10**9, members=10**6)
_LEFT, _TOP = (WIDTH - CROP) // 2, (HEIGHT - CROP) // 2
_FILE = re.compile(r"(?:^|/)CLEVRTEX_([a-z0-9]+)_(\d{1,9})(_flat\.png|\.png|\.json)$")
_SCENES_AT_ONCE = 32
_MAX_JSON_BYTES = 2**20
_CODES = ("shape", "size", "material")


@dataclass
class _Scene:
    """The three files of a scene, by their names in the tree."""

    number: int
    files: dict[str, str]
    """By how the names end: `.png`, `_flat.png`, `.json`."""


class Clevrtex(RawSceneDataModule):
    """CLEVRTEX (Karazija et al., 2021): CLEVR's scenes with photographed materials on objects and floor.

    Three variants: `full`; `outd`, whose shapes and materials `full` has not; and `camo`, in which objects
    and floor share one material. The splits are by the scenes' numbers in order, as in the benchmark: the
    first tenth is the test set, the second the validation set, the rest the training set. All of `outd` is
    test images: train on `full`, then `test ... --data.variant outd`.

    The middle 192 x 192 pixels (0.8 of the shorter side) of the picture are resized to 128: images by
    Pillow's bilinear filter, masks by its nearest. `segmentation` is the index in the publisher's
    `_flat.png`: 0 background, 1 to 10 the objects. `objects` has `present`, `rotation` and `pixel_coords` (in
    the uncropped picture) as the scene's JSON lists them, and `shape`, `size` and `material` as codes: places
    from 1 in the sorted list of all names in the variant, 0 is none. That id `i` is object `i - 1` of that
    list is taken to be so, as in CLEVR; the publisher's documents were not at hand.

    Args:
        variant: `full`, `outd` or `camo`.
        image_size: height and width.
        num_slots: the benchmark's K.
        options: the arguments of every data module, of `RawSceneDataModule`; `synthetic` counts the test
            scenes of `outd`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "clevrtex"
    has_objects = True
    subset_of = "scenes"
    licence: ClassVar[str] = "not known here; see the publisher's page"
    citation: ClassVar[str] = (
        "Karazija, Laina, Rupprecht: ClevrTex: A Texture-Rich Benchmark for Unsupervised Multi-Object "
        "Segmentation, NeurIPS 2021 Datasets and Benchmarks, https://www.robots.ox.ac.uk/~vgg/data/clevrtex"
    )

    def __init__(
        self,
        variant: Which = "full",
        image_size: int = 128,
        num_slots: int = 1 + MAX_OBJECTS,
        **options: Any,
    ) -> None:
        super().__init__(image_size=image_size, num_slots=num_slots, num_background=1, **options)
        if variant not in _PUBLISHED:
            raise DataError(f"variant: {variant!r}, expected {', '.join(_PUBLISHED)}")
        self.variant: Which = variant
        self.published = _PUBLISHED[variant]
        self.splits = tuple(split for split in SPLITS if self.published[split])
        self._known: tuple[Path, FolderTree, list[_Scene], dict[str, list[str]]] | None = None

    @property
    def synthetic_sizes(self) -> dict[Split, int]:
        """Number of synthetic scenes per split."""
        if self.variant == "outd":
            assert self.synthetic is not None
            return {"train": 0, "val": 0, "test": self.synthetic}
        return super().synthetic_sizes

    def tags(self) -> list[str]:
        """What differs from the benchmark's main set and settings."""
        differing = {
            self.variant: self.variant != "full",
            f"{self.image_size}px": self.image_size != 128,
            f"first{self.subset}": self.subset is not None,
        }
        return [tag for tag, differs in differing.items() if differs]

    def options(self) -> dict[str, object]:
        """What the data depend on."""
        return {"variant": self.variant, "subset": self.subset}

    def raw_name(self) -> str:
        """Every variant has a folder of its own."""
        return super().raw_name() if self.variant == "full" else f"{super().raw_name()}-{self.variant}"

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        return 4 * self.image_size**2 + MAX_OBJECTS * (1 + 4 + 12 + 3)

    def open_dataset(self, split: Split) -> Any:
        """Open a split.

        Raises:
            DataError: if the variant has no such split, or it is not prepared or damaged.
        """
        if split not in self.splits:
            raise DataError(
                f"variant: {self.variant} has no images for {split}, all of it is test images; train with "
                "--data.variant full (or camo), then test with this one"
            )
        return super().open_dataset(split)

    def note(self, sizes: Mapping[Split, int]) -> str | None:
        """What has to be said with results."""
        if all(sizes[split] == self.published[split] for split in self.splits):
            return None if self.synthetic is None else super().note(sizes)
        return super().note({split: sizes.get(split, 0) for split in SPLITS})

    def raw_files(self) -> list[RawFile]:
        """The variant's archives."""
        return [
            RawFile(name, f"{_URL}/{name}", about_bytes=_ARCHIVE_BYTES) for name in _ARCHIVES[self.variant]
        ]

    def check_raw(self, folder: Path) -> None:
        """Check that the archives are there, or scenes.

        Raises:
            DataError: if there is neither.
        """
        if not self._has_archives(folder):
            self._look(folder)

    def _has_archives(self, folder: Path) -> bool:
        there = [name for name in _ARCHIVES[self.variant] if (folder / name).is_file()]
        if there and len(there) < len(_ARCHIVES[self.variant]):
            missing = next(name for name in _ARCHIVES[self.variant] if name not in there)
            raise DataError(f"{folder / missing}: missing, expected the publisher's file of {_URL}")
        return bool(there)

    def unpack(self, folder: Path) -> Path:
        """Where the scenes are.

        Raises:
            DataError: if an archive is missing, damaged or of something else.
        """
        if self.synthetic is not None or not self._has_archives(folder):
            return folder
        archives = dict.fromkeys(_ARCHIVES[self.variant], _LIMITS)
        return unpack_all(f"{self.name}-{self.variant}", folder, Path(self.root), archives, self._place)

    def _place(self, name: str) -> str | None:
        """Where a member of an archive goes, if it is needed."""
        match = _FILE.search(name)
        return name if match and match[1] == self.variant else None

    def prepare(self) -> None:
        """Make the stores that are missing and check the others.

        Raises:
            DataError: as the base class, or if the raw files are missing or damaged.
        """
        try:
            super().prepare()
        finally:
            self._known = None

    def _look(self, folder: Path) -> tuple[FolderTree, list[_Scene]]:
        """The tree of files, and the variant's scenes in the order of their numbers.

        Raises:
            DataError: if there are fewer than one for each split, or one lacks a file or has it twice.
        """
        if self._known is None or self._known[0] != folder:
            tree = FolderTree(folder, _LIMITS.member_bytes)
            scenes = _find_scenes(tree, self.variant)
            if len(scenes) < len(self.splits):
                raise DataError(
                    f"{folder}: {len(scenes)} scenes of {self.variant}, expected "
                    f"{', '.join(_ARCHIVES[self.variant])}, or CLEVRTEX_{self.variant}_000000.png ...; give "
                    "more of the publisher's files"
                )
            self._known = folder, tree, scenes, _names(tree, scenes)
        return self._known[1:3]

    def scenes(self, folder: Path) -> dict[Split, list[_Scene]]:
        """Scenes of each split.

        Raises:
            DataError: if there are too few, or one is not whole.
        """
        found = self._look(folder)[1]
        if self.variant == "outd":
            return {"train": [], "val": [], "test": found[: self.subset]}
        if self.synthetic is not None:
            sizes = self.synthetic_sizes
        elif (tenth := len(found) // 10) > 0:
            sizes = {"train": len(found) - 2 * tenth, "val": tenth, "test": tenth}
        else:
            sizes = share_out(len(found), self.published)
        first = sizes["test"] + sizes["val"]
        parts: dict[Split, list[_Scene]] = {
            "train": found[first:],
            "val": found[sizes["test"] : first],
            "test": found[: sizes["test"]],
        }
        return first_of_each(parts, self.subset)

    def split_sizes(self, folder: Path) -> dict[Split, int]:
        """Number of images of each split.

        Raises:
            DataError: if there are too few scenes, or one is not whole.
        """
        return {split: len(part) for split, part in self.scenes(folder).items()}

    def read_split(self, split: Split, folder: Path) -> Iterator[Arrays]:
        """A split's images in chunks.

        Raises:
            DataError: if a file is missing, damaged or of another kind; names it.
        """
        part = self.scenes(folder)[split]
        assert self._known is not None
        _, tree, _, names = self._known
        for first in range(0, len(part), _SCENES_AT_ONCE):
            chunk = part[first : first + _SCENES_AT_ONCE]
            records = list(in_order(lambda scene: self._read(tree, scene, names), chunk))
            yield {name: np.stack([record[name] for record in records]) for name in records[0]}

    def _read(
        self, tree: FolderTree, scene: _Scene, names: Mapping[str, list[str]]
    ) -> dict[str, NDArray[Any]]:
        """One record of a chunk."""
        path = scene.files[".png"]
        picture = read_picture(tree.read(path), tree.where(path), "PNG", WIDTH, HEIGHT)
        ids = _read_ids(tree, scene.files["_flat.png"])
        return {
            "images": np.asarray(self._fit(picture.convert("RGB"), Image.Resampling.BILINEAR)),
            "segmentations": np.asarray(self._fit(Image.fromarray(ids), Image.Resampling.NEAREST)),
            **_factors(tree, scene, names),
        }

    def _fit(self, picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """The middle of a publisher's picture at the size of the images."""
        middle = picture.crop((_LEFT, _TOP, _LEFT + CROP, _TOP + CROP))
        return middle.resize((self.image_size, self.image_size), resampling)

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write scenes of our own renderer, as unpacked from the archives."""
        from data_modules.synthesis import clevrtex

        clevrtex.write(folder, {str(split): size for split, size in sizes.items()}, seed, self.variant)


def _find_scenes(tree: FolderTree, variant: str) -> list[_Scene]:
    """The variant's scenes in the order of their numbers.

    Raises:
        DataError: if one lacks a file, or has it twice.
    """
    scenes: dict[int, _Scene] = {}
    for name in tree.names:
        match = _FILE.search(name)
        if match is None or match[1] != variant:
            continue
        scene = scenes.setdefault(int(match[2]), _Scene(int(match[2]), {}))
        if (known := scene.files.setdefault(match[3], name)) != name:
            raise DataError(f"{tree.where(name)}: is also {tree.where(known)}, expected once")
    for scene in scenes.values():
        for kind in (".png", "_flat.png", ".json"):
            if kind not in scene.files:
                stem = f"CLEVRTEX_{variant}_{scene.number:06d}"
                other = tree.where(next(iter(scene.files.values())))
                raise DataError(f"{other}: has no {stem}{kind} with it, expected picture, mask and JSON")
    return [scenes[number] for number in sorted(scenes)]


def _objects(tree: FolderTree, scene: _Scene) -> list[dict[str, Any]]:
    """The objects that a scene's JSON lists.

    Raises:
        DataError: if it is not readable or of another form.
    """
    where = tree.where(scene.files[".json"])
    content = tree.read(scene.files[".json"])
    if len(content) > _MAX_JSON_BYTES:
        raise DataError(f"{where}: {len(content):,} bytes, expected at most {_MAX_JSON_BYTES:,}")
    try:
        objects = json.loads(content)["objects"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"{where}: not readable as a scene ({reason}), expected JSON with `objects`"
        ) from error
    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise DataError(f"{where}: `objects` is no list of objects, expected one")
    if len(objects) > MAX_OBJECTS:
        raise DataError(f"{where}: {len(objects)} objects, expected at most {MAX_OBJECTS}")
    for number, one in enumerate(objects):
        for key in (*_CODES, "rotation", "pixel_coords"):
            if key not in one:
                raise DataError(f"{where}: object {number} has no `{key}`, expected one")
    return objects


def _names(tree: FolderTree, scenes: list[_Scene]) -> dict[str, list[str]]:
    """All names of shapes, sizes and materials, sorted."""
    found: dict[str, set[str]] = {key: set() for key in _CODES}
    for objects in in_order(lambda scene: _objects(tree, scene), scenes):
        for one in objects:
            for key in _CODES:
                found[key].add(str(one[key]))
    for key, names in found.items():
        if len(names) > 255:
            raise DataError(f"{tree.path}: {len(names)} values of {key}, expected at most 255")
    return {key: sorted(names) for key, names in found.items()}


def _factors(tree: FolderTree, scene: _Scene, names: Mapping[str, list[str]]) -> dict[str, NDArray[Any]]:
    """`objects.*` of one scene, each `[10, ...]`."""
    objects = _objects(tree, scene)
    rotation = np.zeros(MAX_OBJECTS, np.float32)
    place = np.zeros((MAX_OBJECTS, 3), np.float32)
    codes = {key: np.zeros(MAX_OBJECTS, np.uint8) for key in _CODES}
    for number, one in enumerate(objects):
        try:
            rotation[number], place[number] = float(one["rotation"]), np.asarray(one["pixel_coords"], float)
        except (TypeError, ValueError) as error:
            where = tree.where(scene.files[".json"])
            raise DataError(
                f"{where}: object {number}: `rotation` is no number or `pixel_coords` are not three, "
                "expected numbers"
            ) from error
        for key in _CODES:
            codes[key][number] = 1 + names[key].index(str(one[key]))
    return {
        "objects.present": np.arange(MAX_OBJECTS) < len(objects),
        "objects.rotation": rotation,
        "objects.pixel_coords": place,
        **{f"objects.{key}": values for key, values in codes.items()},
    }


def _read_ids(tree: FolderTree, name: str) -> NDArray[np.uint8]:
    """The indices of a palette or grey PNG as stored, `[240, 320]`.

    Raises:
        DataError: if it is damaged, of another kind, or has other ids than 0 to 10.
    """
    content, where = tree.read(name), tree.where(name)
    picture = read_picture(content, where, "PNG", WIDTH, HEIGHT)
    if picture.mode not in ("P", "L", "1"):
        raise DataError(f"{where}: a mask of mode {picture.mode}, expected a palette or grey PNG of 8 bits")
    depth, colour = content[24], content[25]
    ids = np.asarray(picture.convert("L") if picture.mode == "1" else picture, np.uint8)
    if colour == 0 and depth < 8:
        ids = ids // np.uint8(255 // (2**depth - 1))  # Pillow stretches grey of few bits to 0 to 255
    if (highest := int(ids.max())) > MAX_OBJECTS:
        raise DataError(f"{where}: id {highest}, expected 0 to {MAX_OBJECTS}")
    return ids
