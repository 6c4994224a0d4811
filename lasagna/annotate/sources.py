"""Where an image lies: in a file, in an archive, or at an address (fsspec).

What always holds: a source can be pickled, so a worker elsewhere reads it too; a read takes at most the bytes that it
is allowed; nothing is unpacked or downloaded to disk; what fails raises an error that names the image, never the query
of its address (a signed address is a password).

    /photos/a.jpg                    LocalFile
    photos.zip, photos.tar(.gz)      ArchiveMember: an archive stands for the folder that it would be unpacked to
    s3:// gs:// az:// http(s)://     RemoteFile: extras s3, gcs, azure, http; archives there are read in place
"""

import re
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol
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

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_HTTP_TIMEOUT = (10.0, 60.0)
"""Seconds for a connection, and for the next bytes."""

_AHEAD_BYTES = 256 * 1024 * 1024
"""Of a compressed tar: what is kept of members that were passed on the way to one further on."""


class ImageSource(Protocol):
    """An image's place."""

    @property
    def path(self) -> Path | None:
        """Where it is on this machine, or would be if its archive were unpacked; None at an address."""

    @property
    def url(self) -> str | None:
        """Its address, None where it has none of its own."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Its place from the top: names of folders, then its own."""

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
class ArchiveMember:
    """A member of an archive: the archive's absolute path or address, and the member's name in it."""

    archive: str
    member: str
    url: None = None

    @property
    def path(self) -> Path | None:
        return None if is_address(self.archive) else Path(*self.parts)

    @property
    def parts(self) -> tuple[str, ...]:
        folder = without_ending(self.archive)
        above = address_parts(folder) if is_address(folder) else Path(folder).parts
        return (*above, *self.member.removeprefix("./").split("/"))

    def read(self, max_bytes: int, name: str) -> bytes:
        return open_archive(self.archive).read(self.member, max_bytes, name)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An address."""

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


def is_archive(text: str) -> bool:
    """By its ending: what else a file is called says nothing."""
    return _bare(text).lower().endswith(ARCHIVE_ENDINGS)


def without_ending(archive: str) -> str:
    bare = _bare(archive)
    ending = max((end for end in ARCHIVE_ENDINGS if bare.lower().endswith(end)), key=len, default="")
    return bare[: len(bare) - len(ending)]


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


def _bare(text: str) -> str:
    return text.partition("?")[0] if is_address(text) else text


def without_query(text: str) -> str:
    """A message without the queries of the addresses in it."""
    return re.sub(r"\?[^\s'\"<>)]*", "?...", text)


# --- Addresses --------------------------------------------------------------------------------------------------------


def filesystem(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the address as that file system calls it.

    Raises:
        ConfigError: There is no file system for the scheme, or its package is not installed.
    """
    scheme = address.partition("://")[0].lower()
    if scheme not in EXTRAS:
        known = ", ".join(f"{name}://" for name in EXTRAS)
        raise ConfigError(f"{without_query(address)!r} cannot be read: {scheme}:// is none of {known}")
    package, extra = EXTRAS[scheme]
    load_extra(package, extra, f"{scheme}://")
    fsspec = load_extra("fsspec", extra, f"{scheme}://")
    found: tuple[Any, str] = fsspec.core.url_to_fs(address)
    return found


def list_address(address: str) -> list[str]:
    """The addresses that one stands for: itself, the images below a folder, or what a pattern matches; sorted.

    A folder of HTTP ends in "/", and its server lists it as a page of links; elsewhere it is asked for.

    Raises:
        ConfigError: See `filesystem`.
        DataError: It cannot be listed, or nothing is there.
    """
    files, path = filesystem(address)
    scheme, is_http = address.partition("://")[0], address.lower().startswith("http")
    try:
        if "*" in _bare(path):
            found = sorted(name for name in files.glob(path) if not name.endswith("/"))
        elif address.endswith("/") or (not _is_image(path) and not is_http and files.isdir(path)):
            found = sorted(name for name in files.find(path) if _is_image(name) and not _hidden(name, path))
        else:
            return [address]
    except Exception as error:  # every file system has exceptions of its own
        raise DataError(f"{without_query(address)} cannot be listed: {_said(error)}") from error
    if not found:
        raise DataError(f"no image in {without_query(address)}; check the address")
    return [name if is_http else f"{scheme}://{name}" for name in found]


def _is_image(name: str) -> bool:
    return Path(_bare(name)).suffix.lower() in IMAGE_SUFFIXES


def _hidden(name: str, folder: str) -> bool:
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
                raise ImageError(f"{name} cannot be fetched: {_said(error)}") from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _said(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is nothing at this address"
    if isinstance(error, PermissionError):
        return "access is refused; check the credentials"
    return f"{type(error).__name__}: {without_query(str(error))[:300]}"


# --- Archives ---------------------------------------------------------------------------------------------------------


class Archive(Protocol):
    """An open archive. Threads may read at once."""

    in_order: bool
    """Whether members should be read in the archive's own order: one further back costs a new start."""

    def members(self) -> list[str]:
        """Names of the regular files, in the archive's order."""

    def read(self, member: str, max_bytes: int, name: str) -> bytes:
        """The content of a member. Raises ImageError that calls it `name`."""

    def close(self) -> None: ...


_DAMAGED = (OSError, RuntimeError, NotImplementedError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError)


class _Zip:
    in_order = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._zip = file, zipfile.ZipFile(file)

    def members(self) -> list[str]:
        return [entry.filename for entry in self._zip.infolist() if not entry.is_dir()]

    def read(self, member: str, max_bytes: int, name: str) -> bytes:
        with _damage_named(name), self._zip.open(member) as file:
            return read_image_bytes(file, max_bytes=max_bytes, name=name)  # type: ignore[arg-type]

    def close(self) -> None:
        self._zip.close()
        self._file.close()


class _Tar:
    """A tar. One that is compressed is one stream: members that are passed on the way to another are kept for a while,
    since threads ask for neighbours in any order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._tar = tarfile.open(fileobj=file, mode="r:*")  # noqa: SIM115
        self._entries = [entry for entry in self._tar.getmembers() if entry.isreg()]
        self._places = {entry.name: i for i, entry in enumerate(self._entries)}
        self.in_order = self._tar.fileobj is not file
        self._lock = threading.Lock()
        self._next = 0
        self._passed: dict[int, bytes] = {}

    def members(self) -> list[str]:
        return [entry.name for entry in self._entries]

    def read(self, member: str, max_bytes: int, name: str) -> bytes:
        place = self._places[member]
        with _damage_named(name), self._lock:
            data = self._passed.pop(place, None)
            if data is None:
                if not self.in_order or place < self._next:
                    self._next = place  # a compressed file starts anew by itself
                while self._next < place:
                    self._keep(self._next, self._load(self._next, max_bytes))
                    self._next += 1
                data = self._load(place, max_bytes)
                self._next = place + 1
        check_bytes(len(data), max_bytes, name)
        return data

    def _load(self, place: int, max_bytes: int) -> bytes:
        file = self._tar.extractfile(self._entries[place])
        return file.read(max_bytes + 1) if file is not None else b""

    def _keep(self, place: int, data: bytes) -> None:
        self._passed[place] = data
        while sum(map(len, self._passed.values())) > _AHEAD_BYTES:
            del self._passed[next(iter(self._passed))]

    def close(self) -> None:
        self._tar.close()
        self._file.close()


class _damage_named:  # noqa: N801 - a context manager
    """Errors of an archive's reader as ImageError with the image's name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ImageError):
            return
        if isinstance(error, _DAMAGED) or type(error).__name__ in ("error", "LZMAError"):  # zlib.error
            raise ImageError(f"{self._name} cannot be read from its archive: {error}") from error


_archives: dict[str, Archive] = {}
_archives_lock = threading.Lock()


def open_archive(address: str) -> Archive:
    """The archive at a path or address; it stays open, for the next read, until `close_archives`.

    Raises:
        ConfigError: See `filesystem`.
        DataError: It cannot be opened as an archive.
    """
    with _archives_lock:
        if address not in _archives:
            _archives[address] = _open(address)
        return _archives[address]


def close_archives() -> None:
    """Closes every archive that this process has open."""
    with _archives_lock:
        for archive in _archives.values():
            archive.close()
        _archives.clear()


def list_archive(address: str) -> Iterator[ArchiveMember]:
    """The images of an archive, in its order; hidden ones are passed over. Raises as `open_archive`."""
    for member in open_archive(address).members():
        name = member.removeprefix("./")
        if _is_image(name) and not any(p.startswith(".") and p != ".." for p in name.split("/")):
            yield ArchiveMember(address, member)


def _open(address: str) -> Archive:
    file: BinaryIO | None = None
    try:
        if is_address(address):
            files, path = filesystem(address)
            file = files.open(path, "rb")
        else:
            file = open(address, "rb")  # noqa: SIM115
        return _Zip(file) if _bare(address).lower().endswith(".zip") else _Tar(file)
    except ConfigError:
        raise
    except Exception as error:
        if file is not None:
            file.close()
        raise DataError(
            f"{without_query(address)} cannot be opened as an archive: {_said(error)}; make it again, or unpack it and "
            "name the folder"
        ) from error
