"""Whether W&B can be reached, without being asked by it."""

import netrc
import os
import socket
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 3.0
"""Seconds in which a server has to take a connection."""
OLD_HOST = "api.wandb.ai"
"""An older name of W&B's own server; a key that was kept for it is still good."""


def server() -> str:
    """The address of W&B's server: `WANDB_BASE_URL`, what `wandb login --host` has kept, or W&B's own."""
    return os.environ.get("WANDB_BASE_URL") or _kept_address() or _own_address()


def _own_address() -> str:
    import wandb

    return str(wandb.Settings().base_url)


def _kept_address() -> str | None:
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    kept = ConfigParser(interpolation=None)
    with suppress(ConfigParserError, OSError, UnicodeDecodeError):
        kept.read([folder / "settings", Path("wandb", "settings")])  # of the folder one is in comes last
    return kept.get("default", "base_url", fallback=None) or None


def has_key() -> bool:
    """Whether there is an account to log in with: in the environment, or what `wandb login` has kept."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    address = urlsplit(server())
    hosts = [address.netloc, address.hostname or ""]
    if server() == _own_address():
        hosts.append(OLD_HOST)
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
