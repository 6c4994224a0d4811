"""Who may ask the web process, and on which address it may listen.

What always holds:

- with a password (`basic_auth`), every route but `/health` wants it; comparing takes the same time for every guess;
- a webhook may send `webhook_secret` instead, in the header `X-Lasagna-Secret` or as `?secret=...`: Label Studio makes
  its webhook from the backend's address, with the password if that was given as `http://user:password@host:9090`, and
  else without any credentials;
- without a password the process listens on this machine's own addresses alone, unless `without_password` is set;
- no secret is written to a log (`HideSecrets`).
"""

import hashlib
import hmac
import ipaddress
import logging
import re
from dataclasses import dataclass
from urllib.parse import quote

from werkzeug.wrappers import Request

from lasagna.errors import ConfigError
from lasagna.settings import TABLE, Settings

SECRET_HEADER = "X-Lasagna-Secret"


@dataclass(frozen=True)
class Access:
    """What a request must carry. `password` is USER:PASSWORD; an empty one lets everybody in."""

    password: str = ""
    webhook_secret: str = ""

    @classmethod
    def from_settings(cls, settings: Settings) -> "Access":
        """Raises ConfigError where the settings `basic_auth` and `webhook_secret` do not make sense."""
        password, secret = settings["basic_auth"], settings["webhook_secret"]
        user, _, word = password.partition(":")
        if password and not (user and word):
            raise ConfigError("LASAGNA_BASIC_AUTH is USER:PASSWORD, both not empty")
        if secret and not password:
            raise ConfigError(
                "LASAGNA_WEBHOOK_SECRET is what a webhook may send in place of the password, and there is no password: "
                "set LASAGNA_BASIC_AUTH=USER:PASSWORD too"
            )
        return cls(password, secret)

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
    host = str(settings["host"])
    if settings["basic_auth"] or settings["without_password"] or _is_loopback(host):
        return
    raise ConfigError(
        f"{host!r} can be reached from other machines, and there is no password: set LASAGNA_BASIC_AUTH=USER:PASSWORD, "
        "or listen on 127.0.0.1, or, where only trusted machines share the network, set LASAGNA_WITHOUT_PASSWORD=yes"
    )


class HideSecrets(logging.Filter):
    """Replaces the values of secret settings in log records by ***, whoever wrote them (a library's error, say)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        found = {str(settings[setting.name]) for setting in TABLE if setting.secret}
        found |= {found.partition(":")[2] for found in [settings["basic_auth"]]}
        found |= {match[1] for match in [re.search(r"//[^@/:]*:([^@/]+)@", settings["redis_url"])] if match}
        words = sorted((word for word in found | {quote(word) for word in found} if len(word) > 3), key=len)
        self._secrets = re.compile("|".join(map(re.escape, reversed(words)))) if words else None

    def filter(self, record: logging.LogRecord) -> bool:
        if self._secrets is not None:
            said = record.getMessage()
            if self._secrets.search(said):
                record.msg, record.args = self._secrets.sub("***", said), ()
            if record.exc_info:
                # formatted here, because the text of a traceback can hold them too
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            if record.exc_text:
                record.exc_text = self._secrets.sub("***", record.exc_text)
        return True


def _equal(given: str, expected: str) -> bool:
    """Compares in a time that depends on neither the length nor the first difference."""
    ours, theirs = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (expected, given))
    return hmac.compare_digest(ours, theirs)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
