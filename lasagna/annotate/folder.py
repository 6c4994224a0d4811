"""Which images an argument list names, and what they are called in the output."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lasagna.annotate.sources import (
    ImageSource,
    LocalFile,
    RemoteFile,
    is_address,
    is_archive,
    leaves_its_folder,
    list_address,
    list_archive,
    open_archive,
    without_query,
)
from lasagna.errors import DataError
from lasagna.masks.image import IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image to annotate.

    Attributes:
        source: Where it is read from.
        name: Path relative to the images' common folder, with "/", printable. No two images have the same.
        stem: `name` without its ending, where that still names one image, else `name`: for files made from the image.
    """

    source: ImageSource
    name: str
    stem: str

    @property
    def path(self) -> Path | None:
        """The file; of a member of an archive, where it would be if that were unpacked. None at an address."""
        return self.source.path


@dataclass(frozen=True)
class ImageSet:
    """The images, sorted by name (members of a compressed tar stay together, in its order, for it is read once).

    Attributes:
        root: The common folder, or address, of all of them, printable.
        folder: `root` as a folder of this machine; None where some image is at an address.
        files: The images.
        unreadable: What could not be searched or cannot be taken, with the reason.
        archives: The archives that images are read from: each counts as the folder that it would be unpacked to.
    """

    root: str
    folder: Path | None
    files: tuple[ImageFile, ...]
    unreadable: dict[str, str]
    archives: tuple[str, ...] = ()

    @property
    def all_on_disk(self) -> bool:
        """Whether `folder` holds each image under its name."""
        return self.folder is not None and not self.archives


def find_images(arguments: Sequence[str], *, listed: Iterable[str] = (), exclude: Sequence[Path] = ()) -> ImageSet:
    """The images that the arguments and a list name, each once.

    An argument is a file (taken whatever it is called), a folder (searched with all below it for `IMAGE_SUFFIXES`;
    hidden files and folders, whose names start with a dot, are passed over), an archive (searched likewise; archives
    in a folder are not), a glob pattern, in which `**` stands for any depth, or an address (`list_address`). Links to
    files are followed, links to folders inside a searched folder are not. A line of a list is the same, but no
    pattern: file names may contain what patterns are made of.

    Args:
        arguments: As typed.
        listed: Lines of a list. One that leads to nothing fails alone.
        exclude: Folders whose content is never taken: the output of an earlier run may lie among the images.

    Raises:
        ConfigError: An address cannot be read with what is installed.
        DataError: An argument matches nothing, or there is no image at all.
    """
    search = _Search([Path(os.path.abspath(folder)) for folder in exclude])
    for argument in arguments:
        for match in [argument] if is_address(argument) else _matches(argument):
            search.add(match)
    for line in listed:
        try:
            if not is_address(line) and not os.path.lexists(line):
                raise DataError("there is no file or folder of this name")
            search.add(line)
        except DataError as error:
            search.unreadable[printable(without_query(line))] = f"{printable(without_query(line))}: {error}"
    if not search.found and not search.unreadable:
        raise DataError(_nothing_found(arguments))
    return search.image_set()


def read_list(path: Path) -> list[str]:
    """The lines of a list of images, "-" for standard input; empty ones are left out. Raises DataError."""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise DataError(f"the list {path} cannot be read: {error.strerror}") from error
    return [line for line in map(os.fsdecode, data.removeprefix(b"\xef\xbb\xbf").splitlines()) if line.strip()]


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that can be written as UTF-8, whatever bytes the file system holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class _Search:
    """What was found so far: sources by their place, in the order of being found."""

    def __init__(self, excluded: list[Path]) -> None:
        self._excluded = excluded
        self.found: dict[tuple[str, ...], ImageSource] = {}
        self.unreadable: dict[str, str] = {}
        self._order: dict[tuple[str, ...], tuple[tuple[str, ...], int]] = {}
        self._archives: dict[str, None] = {}

    def add(self, match: str) -> None:
        if is_archive(match) and not os.path.isdir(match):
            self._add_archive(match if is_address(match) else os.path.abspath(match))
        elif is_address(match):
            for url in list_address(match):
                self._take(RemoteFile(url))
        else:
            path = Path(match)
            for file in _walk(path, self.unreadable) if path.is_dir() else [path]:
                absolute = Path(os.path.abspath(file))
                if not any(absolute.is_relative_to(folder) for folder in self._excluded):
                    self._take(LocalFile(absolute))

    def _add_archive(self, archive: str) -> None:
        members = list(list_archive(archive))
        if not members:
            raise DataError(f"no image in {without_query(archive)}; archives in it are not searched")
        self._archives[archive] = None
        in_order = open_archive(archive).in_order
        first: tuple[str, ...] | None = None
        for place, member in enumerate(members):
            if self._take(member) and in_order:
                first = first or member.parts
                self._order[member.parts] = (first, place)

    def _take(self, source: ImageSource) -> bool:
        parts = source.parts
        if leaves_its_folder(parts):
            name = printable(without_query(source.url or "/".join(parts)))
            self.unreadable[name] = f"{name}: the name leads out of its folder, or has an empty part; rename it"
            return False
        self.found[parts] = source
        return True

    def image_set(self) -> ImageSet:
        parts = list(self.found)
        roots: dict[str, tuple[str, ...]] = {}
        for place in parts:  # the common folder of what is on this machine, and of each host
            folder = roots.setdefault(place[0], place[:-1])
            common = 0
            while common < min(len(folder), len(place) - 1) and folder[common] == place[common]:
                common += 1
            roots[place[0]] = folder[:common]
        alone = len(roots) == 1
        names = {}
        for place in parts:
            below = place[len(roots[place[0]]) :]
            if not alone and is_address(place[0]):
                below = (*place[0].split("://"), *place[1:])
            names[place] = PurePosixPath(printable("/".join(below)))
        if len(set(names.values())) < len(names):
            raise DataError("two images would have the same name in the output; annotate the addresses apart")
        local = all(not is_address(top) for top in roots)
        folder_path = (Path(*next(iter(roots.values()))) if roots else Path.cwd()) if local else None
        root = printable(folder_path) if folder_path else ", ".join("/".join(root) for root in roots.values())
        return ImageSet(
            root, folder_path, self._named(names), self.unreadable, tuple(without_query(a) for a in self._archives)
        )

    def _named(self, names: dict[tuple[str, ...], PurePosixPath]) -> tuple[ImageFile, ...]:
        stems: dict[str, int] = {}
        for name in names.values():  # compared without case: the output may be unpacked where that is ignored
            stem = str(name.with_suffix("")).casefold()
            stems[stem] = stems.get(stem, 0) + 1

        def order(item: tuple[tuple[str, ...], PurePosixPath]) -> tuple[str, int]:
            first, place = self._order.get(item[0], (item[0], 0))
            return str(names[first]), place

        files = []
        for place, name in sorted(names.items(), key=order):
            stem = str(name.with_suffix(""))
            files.append(ImageFile(self.found[place], str(name), stem if stems[stem.casefold()] == 1 else str(name)))
        return tuple(files)


def _matches(argument: str) -> list[str]:
    if os.path.lexists(argument):
        return [argument]
    matches = sorted(glob.glob(argument, recursive=True)) if glob.has_magic(argument) else []
    if not matches:
        kind = "no file matches the pattern" if glob.has_magic(argument) else "there is no file or folder"
        raise DataError(f"{kind} {argument!r} (looked from {Path.cwd()}); check the spelling")
    return matches


def _walk(folder: Path, unreadable: dict[str, str]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        unreadable[printable(error.filename)] = f"the folder cannot be read: {error.strerror}"

    for parent, folders, names in os.walk(folder, onerror=refused):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def _nothing_found(arguments: Sequence[str]) -> str:
    where = ", ".join(arguments) or "the list"
    seen: dict[str, int] = {}
    for argument in arguments:
        for _, _, names in os.walk(argument):
            for name in names:
                suffix = Path(name).suffix.lower() or name
                seen[suffix] = seen.get(suffix, 0) + 1
    if not seen:
        return f"no image in {where}: it is empty; name a folder that holds images, or image files"
    kinds = ", ".join(f"{count} x {suffix}" for suffix, count in sorted(seen.items(), key=lambda item: -item[1])[:6])
    return (
        f"no image in {where} (found {kinds}); image files end in {', '.join(sorted(IMAGE_SUFFIXES))}; "
        "name a file itself to read it whatever it is called"
    )
