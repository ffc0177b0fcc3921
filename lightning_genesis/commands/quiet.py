"""What others would say into a run's terminal, and nobody needs to read."""

import logging
import re
import warnings

WARNINGS = (
    r".*overridden `(on_after_batch_transfer|transfer_batch_to_device)`",  # on purpose: in one place
    r".*LeafSpec",  # Lightning 2.6 with a newer torch
    r".*does not have many workers",  # a memory map is fastest in the training process
    r".*callbacks used to create the checkpoint",  # evaluation saves nothing
    r".*is smaller than the logging interval",  # steps are counted over epochs
    r".*Checkpoint directory .* exists and is not empty",  # a resumed run
)
"""Warnings about what is right here."""
MESSAGES = re.compile(
    r"litlogger|litmodels"  # advertisements
    r"|torch.set_float32_matmul_precision"  # an option here
    r"|^(GPU|TPU|HPU|IPU) available|LOCAL_RANK: |Seed set to"  # the first lines of a run say what counts
    r"|max_steps=.* reached"  # so does the last block
    r"|^Re?storing states|^Restored all states|^Loaded model weights"  # the command says where it starts
)
"""Messages of Lightning that our own lines have in them."""
LOGGERS = tuple(
    f"{package}.utilities.{name}"
    for package in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    for name in ("rank_zero", "seed")
)


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return MESSAGES.search(str(record.msg)) is None


_QUIET = _Quiet()


def quieten() -> None:
    """Keeps these warnings and messages from the terminal; said twice, it does no more."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_QUIET)  # which is not added again
