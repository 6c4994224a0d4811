"""Which IP addresses are asked: checked when the connection is made, on the very addresses that it then goes to.

What always holds: a name that means another address a moment later (DNS rebinding) gains nothing; an IPv6 address that
wraps an IPv4 one counts as what it wraps.
"""

import ipaddress
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import urllib3.exceptions
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_WRAPPING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "::ffff:0:0:0/96")))
"""IPv4 in the last four bytes: behind a translator (RFC 6052), and translated (RFC 2765)."""
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.0.0/24", "192.88.99.0/24", "::/96", "64:ff9b:1::/48", "3fff::/20", "5f00::/16"),
    )
)
"""Networks that Python takes for public, at least in part, and that are not: for protocols (RFC 6890), 6to4's relays
(RFC 7526), the old way of IPv4 in IPv6 (RFC 4291), IPv4 behind a translator of one's own (RFC 8215), documentation
(RFC 9637), segment routing (RFC 9602)."""
_METADATA = tuple(map(ipaddress.ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "100.100.100.200/32")))
"""Where clouds tell a machine its secrets: link-local addresses, and those of AWS (IPv6) and Alibaba."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    ip = _unwrapped(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


def is_metadata(address: str) -> bool:
    """Whether an IP address is one at which a cloud tells a machine its secrets. No Label Studio is there."""
    ip = _unwrapped(address)
    return any(ip in network for network in _METADATA)


def _unwrapped(address: str) -> Address:
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if wrapped is None and any(ip in network for network in _WRAPPING):
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        return ip if wrapped is None else wrapped
    return ip


class _Connection(HTTPConnection):
    """Looks its host up once, and goes to what was found, where all of that is allowed."""

    allows: Callable[[str], bool]
    refusal: Callable[[str, str], Exception]

    def _new_conn(self) -> socket.socket:
        name = self._dns_host
        try:
            found = socket.getaddrinfo(name, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise urllib3.exceptions.NewConnectionError(self, "its name cannot be looked up") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not all(map(self.allows, addresses)):
            raise self.refusal("https" if isinstance(self, HTTPSConnection) else "http", self.host)
        try:
            for address in addresses[:-1]:
                self._dns_host = address
                with suppress(urllib3.exceptions.HTTPError):
                    return super()._new_conn()
            self._dns_host = addresses[-1]
            return super()._new_conn()
        finally:
            self._dns_host = name  # what the certificate is checked against


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class CheckedAdapter(HTTPAdapter):
    """requests over connections to addresses that are allowed. A proxy that the environment names looks names up itself
    and is trusted to.

    Args:
        allows: Whether an IP address may be asked.
        refusal: The error for a scheme and a host that may not.
    """

    def __init__(self, allows: Callable[[str], bool], refusal: Callable[[str, str], Exception]) -> None:
        checks = {"allows": staticmethod(allows), "refusal": staticmethod(refusal)}
        self._pools = {
            scheme: type("Pool", (pool,), {"ConnectionCls": type("Connection", (connection,), checks)})
            for scheme, pool, connection in (
                ("http", HTTPConnectionPool, _Connection),
                ("https", HTTPSConnectionPool, _TlsConnection),
            )
        }
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools
