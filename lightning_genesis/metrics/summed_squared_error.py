"""Squared error of reconstructions, summed over an image."""

from torch import Tensor

from lightning_genesis.metrics.mean_squared_error import mean_squared_error
from lightning_genesis.metrics.per_image import PerImageMean


def summed_squared_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Squared error of every image, summed over channels and pixels: the "MSE" of the CLEVRTEX benchmark.

    `sum_chw (reconstruction - image)^2`, the mean being over images alone; lower is better. It is
    `mean_squared_error` times `C H W`, so that values of different sizes of images do not compare.

    Args:
        reconstruction: `[B, C, H, W]`.
        image: `[B, C, H, W]`, in the same range: [0, 1] in the benchmark.

    Returns:
        float64 `[B]`.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if an argument is not floating point.

    Source: Karazija, Laina, Rupprecht: "ClevrTex", NeurIPS 2021 Datasets and Benchmarks.
    """
    return mean_squared_error(reconstruction, image) * image[0].numel()


class SummedSquaredError(PerImageMean):
    """Mean over images of `summed_squared_error`."""

    higher_is_better = False

    def update(self, reconstruction: Tensor, image: Tensor) -> None:  # type: ignore[override]
        """Add some images, both `[B, C, H, W]`."""
        super().update(summed_squared_error(reconstruction, image))
