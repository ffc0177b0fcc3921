"""Whether W&B can be reached, without being asked by it."""

import netrc
import os
import socket
from urllib.parse import urlsplit

PATIENCE = 3.0
"""Seconds in which a server has to take a connection."""
OLD_HOST = "api.wandb.ai"
"""An older name of W&B's own server; a key that was kept for it is still good."""


def server() -> str:
    """The address of W&B's server: `WANDB_BASE_URL`, or W&B's own."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)


def has_key() -> bool:
    """Whether there is an account to log in with: `WANDB_API_KEY`, or what `wandb login` has kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    address = urlsplit(server())
    # W&B's own server has an old name too, under which keys were kept
    hosts = (
        address.netloc,
        address.hostname or "",
        *(() if os.environ.get("WANDB_BASE_URL") else (OLD_HOST,)),
    )
    try:
        kept = netrc.netrc(os.environ.get("NETRC") or None)
    except (OSError, netrc.NetrcParseError):
        return False
    return any((kept.authenticators(host) or (None,))[-1] for host in hosts)


def answers() -> bool:
    """Whether the server takes connections."""
    address = urlsplit(server())
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True
