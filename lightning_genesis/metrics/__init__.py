"""Metrics of scene decompositions: a function for a batch returning `[B]`, and a torchmetrics class."""

from lightning_genesis.metrics.adjusted_rand_index import AdjustedRandIndex, adjusted_rand_index
from lightning_genesis.metrics.contingency import Contingency, count_pixels, resize_prediction
from lightning_genesis.metrics.conventions import CONVENTIONS, Convention, EdgeCases
from lightning_genesis.metrics.matched_iou import MatchedIoU, matched_iou
from lightning_genesis.metrics.mean_squared_error import MeanSquaredError, mean_squared_error
from lightning_genesis.metrics.order_consistency import OrderConsistency, order_consistency
from lightning_genesis.metrics.per_image import PerImageMean, bits_per_dimension
from lightning_genesis.metrics.segmentation_covering import SegmentationCovering, segmentation_covering
from lightning_genesis.metrics.segmentation_metrics import SegmentationMetrics, segmentation_metrics
from lightning_genesis.metrics.summed_squared_error import SummedSquaredError, summed_squared_error

__all__ = [
    "CONVENTIONS",
    "AdjustedRandIndex",
    "Contingency",
    "Convention",
    "EdgeCases",
    "MatchedIoU",
    "MeanSquaredError",
    "OrderConsistency",
    "PerImageMean",
    "SegmentationCovering",
    "SegmentationMetrics",
    "SummedSquaredError",
    "adjusted_rand_index",
    "bits_per_dimension",
    "count_pixels",
    "matched_iou",
    "mean_squared_error",
    "order_consistency",
    "resize_prediction",
    "segmentation_covering",
    "segmentation_metrics",
    "summed_squared_error",
]
