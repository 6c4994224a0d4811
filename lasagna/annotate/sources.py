"""Where an image lies: in a file, at an address (fsspec), or in an archive (`lasagna.annotate.archives`).

What always holds: a source can be pickled, so a worker elsewhere reads it too; a read takes at most the bytes that it
is allowed; nothing is unpacked or downloaded to disk; what fails raises an error that names the image, never the query
of its address (a signed address is a password).

    /photos/a.jpg                    LocalFile
    photos.zip, photos.tar(.gz)      lasagna.annotate.archives.ArchiveMember
    s3:// gs:// az:// http(s)://     RemoteFile: extras s3, gcs, azure, http; archives there are read in place
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import requests

from lasagna.errors import ConfigError, DataError, ImageError
from lasagna.extras import load_extra
from lasagna.masks.image import IMAGE_SUFFIXES, check_bytes, read_image_bytes

EXTRAS = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"),
    "abfs": ("adlfs", "azure"),
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
}
"""Scheme of an address: the package that fsspec needs for it, and the extra of ours that installs that."""

_HTTP_TIMEOUT = (10.0, 60.0)
"""Seconds for a connection, and for the next bytes."""


class ImageSource(Protocol):
    """The place of an image: a file, an address, or a member of an archive."""

    @property
    def path(self) -> Path | None:
        """Where it is on this machine, or would be if its archive were unpacked; None at an address."""

    @property
    def url(self) -> str | None:
        """The image's own address, or None."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the folders from the top, then the image's own."""

    def read(self, max_bytes: int, name: str) -> bytes:
        """The content. Raises ImageError that calls it `name`."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file; the path is absolute."""

    path: Path
    url: None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return self.path.parts

    def read(self, max_bytes: int, name: str) -> bytes:
        return read_image_bytes(self.path, max_bytes=max_bytes, name=name)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An image at an address."""

    url: str
    path: None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return address_parts(self.url)

    def read(self, max_bytes: int, name: str) -> bytes:
        data = _retried(lambda: _read_address(self.url, max_bytes), name)
        check_bytes(len(data), max_bytes, name)
        return data


# --- Names ------------------------------------------------------------------------------------------------------------


def is_address(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def address_parts(address: str) -> tuple[str, ...]:
    """`s3://bucket/a/b.jpg` as ("s3://bucket", "a", "b.jpg"); of HTTP decoded, and without the query."""
    split = urlsplit(address)
    if split.scheme.lower() not in ("http", "https"):
        scheme, _, rest = address.partition("://")
        host, *names = rest.split("/")
        return (f"{scheme}://{host}", *names)
    names = [unquote(name) for name in split.path.lstrip("/").split("/")]
    return (f"{split.scheme}://{split.hostname or ''}{f':{split.port}' if split.port else ''}", *names)


def leaves_its_folder(parts: tuple[str, ...]) -> bool:
    """Whether a path made of these names could lead anywhere else than below the first: "..", "/" in a name, ..."""
    return any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts[1:])


def before_query(text: str) -> str:
    """An address without its query; a path as it is."""
    return text.partition("?")[0] if is_address(text) else text


def without_query(text: str) -> str:
    """A message without the queries of the addresses in it."""
    return re.sub(r"\?[^\s'\"<>)]*", "?...", text)


# --- Addresses --------------------------------------------------------------------------------------------------------


def filesystem(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the address as that file system calls it.

    Raises:
        ConfigError: The package of the scheme's file system is not installed.
        DataError: There is no file system for the scheme, or this is no address.
    """
    scheme = address.partition("://")[0].lower()
    if scheme not in EXTRAS:
        known = ", ".join(f"{name}://" for name in EXTRAS)
        raise DataError(f"{without_query(address)!r} cannot be read: {scheme}:// is none of {known}")
    package, extra = EXTRAS[scheme]
    load_extra(package, extra, f"{scheme}://")
    fsspec = load_extra("fsspec", extra, f"{scheme}://")
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(address)
        urlsplit(address).port  # noqa: B018 - raises where it is none
    except Exception as error:  # every file system has exceptions of its own
        raise DataError(f"{without_query(address)!r} is no address: {reason_of(error)}") from error
    return found


def list_address(address: str) -> tuple[list[str], str]:
    """The addresses that one stands for (itself, the images below a folder, or what a pattern matches; sorted), and the
    folder that names are relative to: that of the one, the folder, or the part of the pattern without a "*".

    A folder of HTTP ends in "/", and its server lists it as a page of links; elsewhere it is asked for. Hidden names,
    which start with a dot, are passed over in folders, and by a pattern that does not name them.

    Raises:
        ConfigError: See `filesystem`.
        DataError: It cannot be listed, or nothing is there.
    """
    files, path = filesystem(address)
    scheme, is_http = address.partition("://")[0], address.lower().startswith("http")
    try:
        if "*" in before_query(path):
            fixed = address[: address.index("*")].rpartition("/")[0]
            bare = path[: path.index("*")].rpartition("/")[0]
            wants_hidden = "/." in path.removeprefix(bare)
            names = (name for name in files.glob(path) if not name.endswith("/"))
            found = sorted(name for name in names if wants_hidden or not is_hidden(name, bare))
        elif address.endswith("/") or (not is_image(path) and not is_http and files.isdir(path)):
            fixed = address.rstrip("/")
            found = sorted(name for name in files.find(path) if is_image(name) and not is_hidden(name, path))
        else:
            return [address], before_query(address).rpartition("/")[0]
    except Exception as error:  # every file system has exceptions of its own
        raise DataError(f"{without_query(address)} cannot be listed: {reason_of(error)}") from error
    if not found:
        raise DataError(f"no image in {without_query(address)}; check the address")
    return [name if is_http else f"{scheme}://{name}" for name in found], fixed


def is_image(name: str) -> bool:
    """Whether a search takes a file of this name."""
    return Path(before_query(name)).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix(folder).split("/"))


def _read_address(address: str, max_bytes: int) -> bytes:
    if not address.lower().startswith("http"):
        files, path = filesystem(address)
        data: bytes = files.cat_file(path, start=0, end=max_bytes + 1)
        return data
    # Not through fsspec, which asks twice for each image, and reads it whole where a server knows no ranges.
    with requests.get(address, stream=True, timeout=_HTTP_TIMEOUT) as response:
        if response.status_code in (404, 410):
            raise FileNotFoundError(address)
        response.raise_for_status()
        pieces, size = [], 0
        for piece in response.iter_content(1 << 16):
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                break
    return b"".join(pieces)


def _retried(read: Callable[[], bytes], name: str) -> bytes:
    for pause in (0.5, 1.0, None):
        try:
            return read()
        except ConfigError:
            raise
        except Exception as error:  # every file system has exceptions of its own
            if pause is None or isinstance(error, FileNotFoundError | PermissionError):
                raise ImageError(f"{name} cannot be fetched: {reason_of(error)}") from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def reason_of(error: Exception) -> str:
    """What went wrong in reading, in words, without queries of addresses."""
    if isinstance(error, FileNotFoundError):
        return "there is nothing at this address"
    if isinstance(error, PermissionError):
        return "access is refused; check the credentials"
    return f"{type(error).__name__}: {without_query(str(error))[:300]}"
