"""Who may ask the web process, and on which address it may listen.

What always holds:

- with a password (`basic_auth`), every route but `/health` wants it; comparing takes the same time for every guess;
- a webhook may send `webhook_secret` instead, in the header `X-Lasagna-Secret` or as `?secret=...`: Label Studio makes
  its webhook from the backend's address, with the password if that was given as `http://user:password@host:9090`, and
  else without any credentials;
- without a password the process listens on this machine's own addresses alone, unless `without_password` is set;
- without a password, and without `without_password`, a request from another machine is refused, whatever server this
  runs in and wherever that listens;
- without a password a request must name this machine (a loopback address, localhost, `host` or one of `allowed_hosts`):
  else a page elsewhere, whose name is made to mean 127.0.0.1 (DNS rebinding), could read what is here.

What a log may hold: `lasagna.logs`.
"""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from werkzeug.wrappers import Request

from lasagna.errors import ConfigError
from lasagna.settings import Settings

SECRET_HEADER = "X-Lasagna-Secret"


@dataclass(frozen=True)
class Access:
    """What a request must carry. `password` is USER:PASSWORD; an empty one lets everybody in who names this machine or
    one of `hosts`; `hosts` None: any name will do."""

    password: str = ""
    webhook_secret: str = ""
    hosts: frozenset[str] | None = frozenset()

    @classmethod
    def from_settings(cls, settings: Settings) -> "Access":
        """Raises ConfigError where there is a secret for webhooks and no password."""
        password, secret = settings.basic_auth, settings.webhook_secret
        if secret and not password:
            raise ConfigError(
                "LASAGNA_WEBHOOK_SECRET is what a webhook may send in place of the password, and there is no password: "
                "set LASAGNA_BASIC_AUTH=USER:PASSWORD too"
            )
        names = {name.strip().lower() for name in settings.allowed_hosts.split(",")} | {settings.host.lower()}
        return cls(password, secret, None if password or settings.without_password else frozenset(names - {""}))

    def knows_host(self, request: Request) -> bool:
        """Whether the request's Host names this machine, where that matters."""
        if self.hosts is None:
            return True
        try:
            parts = urlsplit(f"//{request.headers.get('Host', '')}")
            name, full = (parts.hostname or "").lower(), parts.netloc.lower()
        except ValueError:
            return False
        return name == "localhost" or _is_loopback(name) or bool({name, full} & self.hosts)

    def knows_peer(self, request: Request) -> bool:
        """Whether the request comes from this machine, where that matters (a socket of Unix has no address)."""
        peer = request.remote_addr or ""
        return self.hosts is None or not peer or _is_loopback(peer.removeprefix("::ffff:"))

    def lets_in(self, request: Request, *, webhook: bool = False) -> bool:
        """Whether the request carries the password, or as a webhook the secret."""
        if not self.password:
            return True
        given = request.authorization
        named = f"{given.username or ''}:{given.password or ''}" if given is not None and given.type == "basic" else ""
        if _equal(named, self.password):
            return True
        sent = request.headers.get(SECRET_HEADER) or request.args.get("secret") or ""
        return webhook and bool(self.webhook_secret) and _equal(sent, self.webhook_secret)


def check_exposure(settings: Settings) -> None:
    """Refuses to listen beyond this machine without a password.

    Raises:
        ConfigError: `host` is not one of this machine's loopback addresses, and neither `basic_auth` nor
            `without_password` is set.
    """
    host = settings.host
    if settings.basic_auth or settings.without_password or _is_loopback(host):
        return
    raise ConfigError(
        f"{host!r} can be reached from other machines, and there is no password: set LASAGNA_BASIC_AUTH=USER:PASSWORD, "
        "or listen on 127.0.0.1, or, where only trusted machines share the network, set LASAGNA_WITHOUT_PASSWORD=yes"
    )


def _equal(given: str, expected: str) -> bool:
    """Compares in a time that depends on neither the length nor the first difference."""
    ours, theirs = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (expected, given))
    return hmac.compare_digest(ours, theirs)


def _is_loopback(host: str) -> bool:
    """A number alone is an address too, in the URL standard: 2130706433 is 127.0.0.1."""
    try:
        if host.isdecimal() and host.isascii():
            return ipaddress.IPv4Address(int(host)).is_loopback
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
