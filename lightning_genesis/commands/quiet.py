"""Warnings and advice of others that are not shown: about what is meant here."""

import logging
import warnings

NOISE = (
    r".*overridden `(on_after_batch_transfer|transfer_batch_to_device)`",  # on purpose: in one place
    r".*LeafSpec",  # Lightning 2.6 with a newer torch
    r".*does not have many workers",  # a memory map is fastest in the training process
    r".*callbacks used to create the checkpoint",  # evaluation saves nothing
    r".*Checkpoint directory .* exists and is not empty",  # a resumed run
)
"""Warnings about what is right here."""
ADVICE = ("litlogger", "litmodels", "torch.set_float32_matmul_precision")
"""Lightning's, on products of its company and on what is an option here."""


def quieten() -> None:
    """Hides them, in this process."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    logging.getLogger("lightning_fabric.utilities.rank_zero").addFilter(_is_no_advice)
    logger.addFilter(_is_no_advice)


def _is_no_advice(row: logging.LogRecord) -> bool:
    return not any(name in str(row.msg) for name in ADVICE)
