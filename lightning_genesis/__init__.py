"""Lightning Genesis: object-centric generative models, trained, compared and reused."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_genesis.runs.loading import load

try:
    __version__ = version("lightning-genesis")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # `lightning-genesis --help` must not wait for torch.
    if name == "load":
        from lightning_genesis.runs.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
