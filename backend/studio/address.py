"""The address of a Label Studio, as somebody gave it: `/setup`, a setting, a redirect."""

import re
from urllib.parse import urlsplit

from lasagna.errors import ConfigError
from lasagna.settings import hide_password

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?|[0-9A-Fa-f:.]+")
_USER = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%-]+")
_PREFIX = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*")
"""A path below which Label Studio is served: plain names, none of them "." or ".."."""


def normalise_url(url: str) -> str:
    """An address, made anew of its parts: scheme, perhaps a user, host, perhaps a port, and a path of plain names.

    So nothing that is put behind it can become a part of something else ("?" and "#" would swallow the path).

    Raises:
        ConfigError: It is not an http(s) address with a host, or has more to it: a query, a fragment, "..".
    """
    text = url.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port  # raises ValueError where it is no number
    except ValueError as error:
        raise ConfigError(f"the address of Label Studio, {text[:200]!r}, cannot be read: {error}") from error
    user, at, _ = parts.netloc.rpartition("@")
    matches = [_HOST.fullmatch(host), _PREFIX.fullmatch(parts.path), _USER.fullmatch(user) if at else True]
    is_plain = all(matches) and not {"?", "#", "\\"} & set(text)
    if parts.scheme not in ("http", "https") or not is_plain:
        shown = hide_password(text[:200])
        raise ConfigError(
            f"the address of Label Studio is {shown!r}; expected a scheme, a host, perhaps a port and a path of plain "
            "names, such as http://127.0.0.1:8080 or https://label.example.org/studio"
        )
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{user}{at}{host}{'' if port is None else f':{port}'}{parts.path}"


def redirect_target(location: str) -> str:
    """Where a redirect leads, " to" with scheme and host alone; "" where that cannot be told."""
    try:
        parts = urlsplit(location)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        return ""
    return f" to {parts.scheme}://{host}{'' if port is None else f':{port}'}"
