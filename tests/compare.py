"""How reference values are compared, everywhere: a difference counts against the size of its tensor.

float32 gives all numbers of a tensor about the same absolute error, that of its large ones, and which error
depends on the processor's instructions. A tolerance relative to each single number would ask more of those
near zero than any machine can give. Where a test sees a few numbers of a tensor, `of` is the tensor.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

FORWARD = 3e-5
"""Activations, latents, masks and divergences in float32. Seen: 4e-6; and six printed digits hide 5e-6."""
TOTAL = 1e-5
"""Errors and losses in float32, sums of thousands of terms whose roundings cancel. Seen: 1e-7."""
GRADIENT = 1e-3
"""Gradients in float32, and their norms; a rounding may put a ReLU on its other side. Seen: 3e-4."""
CANCELLING = 2e-3
"""Gradients of one number that acts on all pixels, such as the width of a kernel: sums whose parts all but
cancel, over pixels and over masks that hang on a chain of seeds; norms where many ReLUs are close to 0."""
PRINTED = 2e-6
"""Values that were computed in float64 and printed with seven digits."""
DOUBLE = 1e-10
"""Everything in float64: what the bounds of float32 would let through is seen here. Seen: 1e-13."""


def size(values: Any) -> float:
    """Largest absolute value."""
    array = _array(values)
    return float(np.abs(array).max()) if array.size else 0.0


def norm(values: Any) -> float:
    """Euclidean norm."""
    return float(np.linalg.norm(_array(values)))


def difference(found: Any, expected: Any, of: Any = None, by_norm: bool = False) -> float:
    """Largest difference, as a share of the size of `of`; of the expected values, if that is None.

    NaN where one of both is not finite. Shapes have to be equal.
    """
    a, b = _array(found), _array(expected)
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    measure = norm if by_norm else size
    distance, scale = measure(a - b), measure(b if of is None else of)
    if not distance:
        return 0.0
    return distance / scale if scale else np.inf


def assert_near(
    found: Any,
    expected: Any,
    bound: float = FORWARD,
    of: Any = None,
    name: str = "",
    by_norm: bool = False,
) -> None:
    """Fails where a number is further from its expected one than `bound` times the size of the tensor.

    Args:
        found: tensor, array, list or number.
        expected: the same shape.
        bound: one of this module's.
        of: the tensor that the numbers belong to, or its size; the expected numbers themselves if None.
        name: of the quantity, for the message.
        by_norm: compare the norm of the difference with that of the tensor: where one element may be off by
            more, as the gradient of a ReLU is that a rounding has put on its other side.
    """
    __tracebackhide__ = True
    share = difference(found, expected, of, by_norm)
    if not share <= bound:  # so that NaN fails
        a, b = _array(found), _array(expected)
        worst = np.unravel_index(int(np.argmax(np.nan_to_num(np.abs(a - b), nan=np.inf))), a.shape)
        place = f" at {[int(i) for i in worst]}" if a.ndim else ""
        raise AssertionError(
            f"{name or 'value'}{place}: {a[worst]:.10g} found, {b[worst]:.10g} expected; "
            f"off by {share:.2g} of the tensor's size, {bound:.2g} allowed"
        )


def assert_all_near(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    bounds: float | Mapping[str, float] = FORWARD,
    floor: float = 0.0,
    by_norm: bool = False,
) -> None:
    """`assert_near` for all of several quantities by name, which have to be the same ones.

    Args:
        found: quantities by name.
        expected: the same names.
        bounds: one for all, or by name; `FORWARD` for names that it lacks.
        floor: smallest size that a tensor is judged against, for gradients that are zero but for rounding.
        by_norm: see `assert_near`.
    """
    __tracebackhide__ = True
    assert found.keys() == expected.keys(), f"not in both: {sorted(found.keys() ^ expected.keys())}"
    failures = []
    for name, value in found.items():
        bound = bounds.get(name, FORWARD) if isinstance(bounds, Mapping) else bounds
        try:
            scale = max((norm if by_norm else size)(expected[name]), floor)
            assert_near(value, expected[name], bound, scale, name, by_norm)
        except AssertionError as error:
            failures.append(str(error))
    if failures:
        raise AssertionError("\n".join(failures))


def statistics(tensor: torch.Tensor) -> torch.Tensor:
    """Mean and population standard deviation over all elements."""
    return torch.stack([tensor.mean(), tensor.std(correction=0)])


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().double().cpu().numpy()
    if isinstance(values, Sequence) and any(isinstance(value, torch.Tensor) for value in values):
        return np.stack([_array(value) for value in values])
    return np.asarray(values, dtype=np.float64)
