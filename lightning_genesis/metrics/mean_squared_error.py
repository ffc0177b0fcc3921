"""Squared error of reconstructions."""

from torch import Tensor

from lightning_genesis.metrics.per_image import PerImageMean


def mean_squared_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Squared error of every image, averaged over channels and pixels.

    `mean_chw (reconstruction - image)^2`, in 0 to 1 if both are in [0, 1]; lower is better. As reported
    in the EMORL paper. Torchmetrics' own class sums in float32 and gives no value per image.

    Args:
        reconstruction: `[B, C, H, W]`.
        image: `[B, C, H, W]`, in the same range.

    Returns:
        float64 `[B]`.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if an argument is not floating point: bytes have another range.
    """
    for name, tensor in (("reconstruction", reconstruction), ("image", image)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected floating-point values, got {tensor.dtype}")
    if reconstruction.shape != image.shape or image.dim() != 4:
        raise ValueError(
            "reconstruction and image: expected the same [B, C, H, W], "
            f"got {list(reconstruction.shape)} and {list(image.shape)}"
        )
    return (reconstruction.double() - image.double()).square().mean(dim=(1, 2, 3))


class MeanSquaredError(PerImageMean):
    """Mean over images of `mean_squared_error`."""

    higher_is_better = False

    def update(self, reconstruction: Tensor, image: Tensor) -> None:  # type: ignore[override]
        """Add some images, both `[B, C, H, W]`."""
        super().update(mean_squared_error(reconstruction, image))
