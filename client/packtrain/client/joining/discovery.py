"""Finding fleets on the LAN, and being found: multicast DNS (RFC 6762, 6763), service `_packtrain._tcp`.

What is announced is only where the pairing service listens. Anybody may announce that, too; the exchange shows who
knows the code.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ifaddr
from zeroconf import Error, InterfaceChoice, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from packtrain.broker.errors import SetupError

SERVICE = "_packtrain._tcp.local."
#: The first answer mostly comes within 0.1 s; others get this long after it, seconds.
SETTLE_S = 1.0
FIND_S = 6.0
INFO_MS = 2000
#: Told to others; a machine with more has many bridges of containers.
MAX_ADDRESSES = 4


@dataclass(frozen=True, slots=True)
class Found:
    """A fleet on the LAN."""

    name: str
    addresses: tuple[str, ...]
    port: int


def own_addresses(listen: str) -> tuple[str, ...]:
    """Addresses that others may reach a service at which listens on `listen`: itself, or of a wildcard all of ours."""
    address = ipaddress.ip_address(listen)
    if not address.is_unspecified:
        return (listen,)
    ips = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)]
    usable = [ip for ip in ips if not (ipaddress.ip_address(ip).is_loopback or ipaddress.ip_address(ip).is_link_local)]
    return tuple(usable[:MAX_ADDRESSES])


@contextmanager
def announced(name: str, addresses: Sequence[str], port: int) -> Iterator[None]:
    """Announce a fleet for the time of the block.

    Raises:
        OSError: There is no network to do so, or it does not take the name.
    """
    zeroconf = Zeroconf(interfaces=list(addresses))
    try:
        try:
            info = ServiceInfo(
                SERVICE,
                f"{name}.{SERVICE}",
                addresses=[socket.inet_pton(_family(a), a) for a in addresses],
                port=port,
                properties={"v": "1"},
                server=f"{name}.local.",
            )
            zeroconf.register_service(info, allow_name_change=True)
        except Error as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        yield
    finally:
        zeroconf.close()


def find_fleets(timeout_s: float = FIND_S) -> list[Found]:
    """Fleets that answer on the LAN, by name; waits until the first has been there for a moment, or for the whole time.

    Raises:
        SetupError: This machine has no network that multicast works on.
    """
    try:
        zeroconf = Zeroconf(interfaces=InterfaceChoice.All)
    except OSError as error:
        raise SetupError(
            f"cannot look for fleets on the LAN ({error}); join by `packtrain node --join TOKEN` instead"
        ) from error
    names: set[str] = set()
    heard = threading.Event()

    def note(*, name: str, state_change: ServiceStateChange, **_: object) -> None:
        if state_change is ServiceStateChange.Added:
            names.add(name)
            heard.set()

    try:
        ServiceBrowser(zeroconf, SERVICE, handlers=[note])
        if heard.wait(timeout_s):
            time.sleep(SETTLE_S)
        found = [zeroconf.get_service_info(SERVICE, name, timeout=INFO_MS) for name in sorted(names)]
    finally:
        zeroconf.close()
    return sorted((_found(info) for info in found if info and info.port), key=lambda fleet: fleet.name)


def _found(info: ServiceInfo) -> Found:
    addresses = tuple(info.parsed_scoped_addresses()[:MAX_ADDRESSES])
    return Found(info.name.removesuffix(f".{SERVICE}"), addresses, info.port or 0)


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
