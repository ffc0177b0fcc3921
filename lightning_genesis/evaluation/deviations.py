"""In what an evaluation differs from a paper's, in words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_SIDES = r"(\d+)x\1, (\d+)x\2 in the protocol"
_WORDS: tuple[tuple[str, str], ...] = (
    (rf"images of {_SIDES}", r"\1 px, paper \2 px"),
    (rf"masks scored at {_SIDES}", r"masks scored at \1 px, paper \2 px"),
    (r"scores over (\d+) images, (\d+) in the protocol", r"\1 images, paper \2"),
    (r"(.*), (\S+) in the papers", r"\1, papers \2"),
    (r"data: max(\d+)", r"at most \1 objects"),
    (r"data: (train|val|test)-(\d+)", r"\2 \1 images"),
    (r"data: drawn.*", "sets of another size are drawn"),
    (r"data: first(\d+)", r"the first \1 images alone"),
    (r"data: (\d+)shards", r"\1 shards alone"),
    (r"data: full_masks", "masks at their full size"),
    (r"data: (bilinear|nearest)", r"images resized by \1"),
    (r"data: black", "black background"),
    (r"data: saturated", "saturated colours"),
    (r"data: repaired", "background repaired"),
    (r"data: blacklist", "without the scenes of the blacklist"),
    (r"data: npz", "original sprites"),
    (r"data: genesis", "images as GENESIS cuts them"),
    (r"data: (.*)", r"\1"),
)
"""What lines of a result mean; the first pattern that is the whole line counts."""


def in_words(deviations: Sequence[str], rules: Mapping[str, Any] | None = None) -> list[str]:
    """The deviations of a result as people say them, as in "32 px, paper 64 px", each once.

    Args:
        deviations: `Result.deviations`.
        rules: `Result.rules`, where there is a protocol.
    """
    paper = (rules or {}).get("image_size")
    words = []
    for line in deviations:
        if size := re.fullmatch(r"data: (\d+)px", line):
            words.append(f"{size[1]} px" + (f", paper {paper} px" if paper else ""))
            continue
        found = (re.sub(pattern, text, line) for pattern, text in _WORDS if re.fullmatch(pattern, line))
        words.append(next(found, line))
    return [*dict.fromkeys(words)]
