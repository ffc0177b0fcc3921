"""Every model learns 64 Multi-dSprites images by heart (minutes each: `make test-slow`)."""

from pathlib import Path

import pytest
import torch

from benchmarks.overfit import HEADER, SETTINGS, overfit, row

SLOT_MODELS = ("GENESIS-V2", "GENESIS", "GENESIS-S", "MONet", "Slot Attention")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_error_falls_ten_times(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = overfit(SETTINGS[name], str(tmp_path))
    finally:
        torch.set_num_threads(threads)
    with capsys.disabled():
        print(f"\n{HEADER}\n{row(name, result)}")
    assert result.untrained >= 10 * result.trained
    # A model that draws no sprites has the constant image's error, which an untrained one's may be far above.
    assert result.constant > result.trained
    assert (result.ari_fg is not None) == (name in SLOT_MODELS)
