"""Ports for what `packtrain up` starts beside the fleet: known before, so that a page can name them."""

from __future__ import annotations

import socket

from packtrain.broker.errors import SetupError

#: Addresses that stand for all of a machine, and how it reaches itself there.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def here(host: str) -> str:
    """Where this machine reaches what listens at `host`.

    >>> here("0.0.0.0"), here("192.168.1.5")
    ('127.0.0.1', '192.168.1.5')
    """
    return _ANY.get(host, host)


def url_here(host: str, port: int) -> str:
    """The same as a URL."""
    return f"http://[{here(host)}]:{port}" if ":" in host else f"http://{here(host)}:{port}"


def checked_port(host: str, port: int, *, what: str, option: str) -> int:
    """`port`, which `what` can have; of 0 a free one.

    Args:
        host: Address it is to listen at.
        option: That chooses another.

    Raises:
        SetupError: It is taken, or the address is none of ours.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SetupError(
                f"port {port} on {host} cannot be used for {what} ({error.strerror}); "
                f"choose another with `{option}` (0 takes a free one)"
            ) from error
        return int(probe.getsockname()[1])
