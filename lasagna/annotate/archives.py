"""Images in archives, which are read in place: zip and tar, on this machine or at an address.

What always holds: an archive stands for the folder that it would be unpacked to, links in it included; a link never
leads out of its archive; nothing is unpacked to disk; threads may read at once.
"""

import os
import posixpath
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from lasagna.annotate.sources import (
    ImageSource,
    LocalFile,
    RemoteFile,
    address_parts,
    before_query,
    filesystem,
    is_address,
    is_image,
    reason_of,
    without_query,
)
from lasagna.errors import ConfigError, DataError, ImageError
from lasagna.masks.image import check_bytes, read_image_bytes

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_AHEAD_BYTES = 256 * 1024 * 1024
"""Bytes of members that a compressed tar keeps when it passes them on the way to a later one."""


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
        return (*archive_parts(self.archive), *self.member.removeprefix("./").split("/"))

    def read(self, max_bytes: int, name: str) -> bytes:
        return open_archive(self.archive).read(self.member, max_bytes, name)


def is_archive(text: str) -> bool:
    """By its ending: what else a file is called says nothing."""
    return before_query(text).lower().endswith(ARCHIVE_ENDINGS)


def without_ending(archive: str) -> str:
    bare = before_query(archive)
    ending = max((end for end in ARCHIVE_ENDINGS if bare.lower().endswith(end)), key=len, default="")
    return bare[: len(bare) - len(ending)]


def archive_parts(archive: str) -> tuple[str, ...]:
    """The place of the folder that an archive would be unpacked to."""
    folder = without_ending(archive)
    return address_parts(folder) if is_address(folder) else Path(folder).parts


def source_to_json(source: ImageSource) -> str | list[str]:
    """The place of an image, for a file of notes."""
    if isinstance(source, ArchiveMember):
        return [source.archive, source.member]
    return source.url if source.url is not None else str(source.path)


def source_from_json(place: str | list[str]) -> ImageSource:
    """The inverse of `source_to_json`."""
    if not isinstance(place, str):
        archive, member = place
        return ArchiveMember(archive, member)
    return RemoteFile(place) if is_address(place) else LocalFile(Path(place))


class Archive(Protocol):
    """An open archive. Threads may read at once."""

    in_order: bool
    """Whether members should be read in the archive's own order: one further back costs a new start."""
    notes: list[str]
    """What is passed over and somebody may miss, in words."""

    def members(self) -> list[str]:
        """Names of the files, with "/", in the archive's order: regular ones and links."""

    def read(self, member: str, max_bytes: int, name: str) -> bytes:
        """The content of a member, of a link that of its target. Raises ImageError that calls it `name`."""

    def close(self) -> None: ...


_DAMAGED = (OSError, RuntimeError, NotImplementedError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError)


def _follow(member: str, links: dict[str, str], name: str) -> str:
    """The member that a link ends at. Raises ImageError where it ends nowhere."""
    seen = {member}
    while (target := links.get(member)) is not None:
        if target in seen:
            raise ImageError(f"{name} is a link that leads to itself")
        seen.add(target)
        member = target
    return member


def _target(member: str, link: str) -> str:
    """The name of the member that a symbolic link of this text means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(member), link))


def _folder_links(links: dict[str, str], members: set[str]) -> list[str]:
    """Says of each link to a folder that it is passed over; images in the archive are taken under their own names."""
    return [
        f"{name} is passed over: it is a link to {target}, which is "
        + ("searched anyway" if any(member.startswith(target + "/") for member in members) else "not in the archive")
        for name, target in links.items()
        if not is_image(name) and target not in members and not posixpath.splitext(target)[1]
    ]


class _Zip:
    in_order = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._zip = file, zipfile.ZipFile(file)
        entries = [entry for entry in self._zip.infolist() if not entry.filename.endswith(("/", "\\"))]
        slashed = any("/" in entry.filename for entry in self._zip.infolist())
        self.notes: list[str] = []
        self._entries: dict[str, zipfile.ZipInfo] = {}
        self._links: dict[str, str] = {}
        for entry in entries:
            name = entry.filename
            # As unzip reads what was made on Windows: there "\\" cannot be part of a name.
            if entry.create_system in _WINDOWS or not slashed:
                name = name.replace("\\", "/")
            if name in self._entries and is_image(name):
                self.notes.append(f"{name} is twice in the archive; the later one is taken, as unzip does")
            self._entries[name] = entry
            is_link = entry.create_system == _UNIX and stat.S_ISLNK(entry.external_attr >> 16)
            if is_link and entry.file_size <= _LONGEST_LINK:
                self._links[name] = _target(name, os.fsdecode(self._zip.read(entry)))
        self.notes += _folder_links(self._links, set(self._entries))

    def members(self) -> list[str]:
        return list(self._entries)

    def read(self, member: str, max_bytes: int, name: str) -> bytes:
        entry = self._entries.get(_follow(member, self._links, name))
        if entry is None:
            raise ImageError(f"{name} is a link to {self._links[member]}, which is not in the archive")
        with _damage_named(name), self._zip.open(entry) as file:
            return read_image_bytes(file, max_bytes=max_bytes, name=name)  # type: ignore[arg-type]

    def close(self) -> None:
        self._zip.close()
        self._file.close()


_LONGEST_LINK = 4096
_UNIX, _WINDOWS = 3, (0, 10, 11, 14)
"""Codes of the systems on which a zip's entry was made (APPNOTE.TXT, 4.4.2.2)."""


class _Tar:
    """A tar. One that is compressed is one stream: members that are passed on the way to another are kept for a while,
    since threads ask for neighbours in any order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._tar = tarfile.open(fileobj=file, mode="r:*")  # noqa: SIM115
        entries = self._tar.getmembers()
        self._entries = [entry for entry in entries if entry.isreg()]
        self._places = {posixpath.normpath(entry.name): i for i, entry in enumerate(self._entries)}
        # A hard link names a member, a symbolic one a path from where it lies.
        self._links = {
            posixpath.normpath(entry.name): posixpath.normpath(entry.linkname)
            if entry.islnk()
            else _target(entry.name, entry.linkname)
            for entry in entries
            if entry.islnk() or entry.issym()
        }
        self.notes = _folder_links(self._links, set(self._places))
        self._names = [entry.name for entry in entries if entry.isreg() or entry.islnk() or entry.issym()]
        self.in_order = self._tar.fileobj is not file
        self._lock = threading.Lock()
        self._next = 0
        self._passed: dict[int, bytes] = {}

    def members(self) -> list[str]:
        return self._names

    def read(self, member: str, max_bytes: int, name: str) -> bytes:
        member = posixpath.normpath(member)
        place = self._places.get(_follow(member, self._links, name))
        if place is None:
            raise ImageError(f"{name} is a link to {self._links[member]}, which is not in the archive")
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
        if is_image(name) and not any(p.startswith(".") and p != ".." for p in name.split("/")):
            yield ArchiveMember(address, member)


def _open(address: str) -> Archive:
    file: BinaryIO | None = None
    try:
        if is_address(address):
            files, path = filesystem(address)
            file = files.open(path, "rb")
        else:
            file = open(address, "rb")  # noqa: SIM115
        return _Zip(file) if before_query(address).lower().endswith(".zip") else _Tar(file)
    except ConfigError:
        raise
    except Exception as error:
        if file is not None:
            file.close()
        raise DataError(
            f"{without_query(address)} cannot be opened as an archive: {reason_of(error)}; make it again, or unpack it "
            "and name the folder"
        ) from error
