"""CRC-32C against an independent implementation and the standard's check value."""

import crc32c as independent
import numpy as np
import pytest

from data_modules.raw.crc32c import crc32c, masked_crc32c


def test_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 63, 64, 65, 2319, 2320, 2321, 4700, 20_000, 500_003])
def test_agrees_with_another_implementation(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == independent.crc32c(data)
    assert crc32c(memoryview(bytearray(data))) == independent.crc32c(data)


def test_every_length_around_the_folds() -> None:
    data = np.random.default_rng(0).bytes(3 * 290 * 8)
    for length in range(64, len(data), 37):
        assert crc32c(data[:length]) == independent.crc32c(data[:length]), length


def test_data_are_left_as_they_are() -> None:
    data = bytearray(np.random.default_rng(1).bytes(10_000))
    before = bytes(data)
    crc32c(data)
    assert data == before


def test_masking() -> None:
    crc = independent.crc32c(bytes([8, 0, 0, 0, 0, 0, 0, 0]))
    expected = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc32c(bytes([8, 0, 0, 0, 0, 0, 0, 0])) == expected
