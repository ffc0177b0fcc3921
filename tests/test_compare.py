"""What counts as equal to a reference value."""

import math

import numpy as np
import pytest
import torch

from tests.compare import DOUBLE, assert_all_near, assert_near, difference


def test_a_difference_counts_against_the_size_of_its_tensor() -> None:
    expected = [1e-7, 2.0]
    assert difference([3e-7, 2.0], expected) == pytest.approx(1e-7)
    assert difference([3e-7, 2.0], expected, of=[4.0, -8.0]) == pytest.approx(2.5e-8)
    assert difference([3.0, 0.0], [0.0, 4.0], by_norm=True) == pytest.approx(1.25)
    assert_near([3e-7, 2.0], expected)
    with pytest.raises(AssertionError, match=r"value at \[1\]: 2.001 found, 2 expected; off by 0.0005 of"):
        assert_near([1e-7, 2.001], expected)
    with pytest.raises(AssertionError, match="off by 1"):
        assert_near(1e-7, 2e-7 / 4)  # on its own, a number near zero is judged like any other


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_near(wrong: float) -> None:
    for found, expected in (([1.0, wrong], [1.0, 2.0]), ([1.0, 2.0], [1.0, wrong])):
        with pytest.raises(AssertionError, match=r"value at \[1\]"):
            assert_near(found, expected, 1e6)


def test_zero_and_nothing() -> None:
    assert_near(torch.zeros(3), np.zeros(3), DOUBLE)
    assert_near(torch.zeros(0), [])
    with pytest.raises(AssertionError, match="off by inf"):
        assert_near([1e-30, 0.0], [0.0, 0.0])


def test_shapes_and_names_have_to_be_the_same() -> None:
    with pytest.raises(AssertionError, match="shapes"):
        assert_near(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(AssertionError, match=r"not in both: \['b'\]"):
        assert_all_near({"a": 1.0}, {"a": 1.0, "b": 2.0})


def test_all_that_differ_are_named() -> None:
    found = {"small": [1.0001], "large": [1.1], "tiny": [1e-9]}
    expected = {"small": [1.0], "large": [1.0], "tiny": [2e-9]}
    with pytest.raises(AssertionError) as caught:
        assert_all_near(found, expected, {"small": 1e-3}, floor=1.0)
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == ["large"]
