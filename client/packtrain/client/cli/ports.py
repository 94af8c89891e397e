"""Ports for what `packtrain up` starts beside the fleet: known before, so that a page can name them."""

from __future__ import annotations

import socket

from packtrain.broker.errors import SetupError


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
