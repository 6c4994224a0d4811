"""Which images an argument list names, and what they are called in the output.

What always holds: an image is called by its path below what was named (a folder, the folder that an archive would be
unpacked to, the fixed part of a pattern, the folder of a file), or below the common folder of several; so what else a
folder holds renames nothing. Files that are made from different images have different names.
"""

import glob
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lasagna.annotate.archives import archive_parts, is_archive, list_archive, open_archive
from lasagna.annotate.sources import (
    ImageSource,
    LocalFile,
    RemoteFile,
    address_parts,
    is_address,
    leaves_its_folder,
    list_address,
    without_query,
)
from lasagna.annotate.swap import files_below
from lasagna.errors import DataError
from lasagna.masks import heif
from lasagna.masks.image import IMAGE_SUFFIXES, UNREAD_SUFFIXES


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image to annotate.

    Attributes:
        source: Where it is read from.
        name: Path relative to the set's `root`, with "/", printable. No two images have the same.
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
        root: The folder or address that was named, or the common one of several, printable.
        folder: `root` as a folder of this machine; None where some image is at an address.
        files: The images.
        unreadable: What could not be searched or cannot be taken, with the reason.
        archives: The archives that images are read from: each counts as the folder that it would be unpacked to.
        notes: What was passed over that somebody may miss, in words.
    """

    root: str
    folder: Path | None
    files: tuple[ImageFile, ...]
    unreadable: dict[str, str]
    archives: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all_on_disk(self) -> bool:
        """Whether `folder` holds each image under its name."""
        return self.folder is not None and not self.archives


def find_images(
    arguments: Sequence[str],
    *,
    listed: Iterable[str] = (),
    exclude: Sequence[Path] = (),
    ours: Container[str] = (),
    known: Iterable[ImageSource] = (),
) -> ImageSet:
    """The images that the arguments and a list name, each once.

    An argument is a file (taken whatever it is called), a folder (searched with all below it for `IMAGE_SUFFIXES`;
    hidden files and folders, whose names start with a dot, are passed over), an archive (searched likewise; archives
    in a folder are not), a glob pattern, in which `**` stands for any depth, or an address (`list_address`). Links are
    followed; of a folder that several ways lead to, the first is taken. A line of a list is the same, but no pattern:
    file names may contain what patterns are made of.

    Args:
        arguments: As typed.
        listed: Lines of a list. One that leads to nothing fails alone.
        exclude: Folders whose content is never taken: the output of an earlier run may lie among the images.
        ours: Paths of files in them that nobody misses.
        known: What an earlier run has read. Where a line or a folder cannot be searched now, those of them that lie
            there are taken: they fail on their own, for they may be back tomorrow.

    Raises:
        ConfigError: An address cannot be read with what is installed.
        DataError: An argument matches nothing, or there is no image at all.
    """
    matches = [match for argument in arguments for match in _matches(argument)]
    lines = list(listed)
    search = _Search(exclude, ours, [path for path, _ in matches] + lines, list(known))
    for match, base in matches:
        search.add(match, base)
    for line in lines:
        try:
            if not is_address(line) and not os.path.lexists(line):
                raise DataError("there is no file or folder of this name")
            search.add(line)
        except DataError as error:
            if search.take_known(line):
                continue
            search.unreadable[printable(without_query(line))] = f"{printable(without_query(line))}: {error}"
    if not search.found and not search.unreadable:
        raise DataError(_nothing_found(arguments, search.notes))
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
    """What was found so far: sources by their place, in the order of being found.

    Args:
        excluded: Folders whose content is never taken.
        ours: Paths of files in them that nobody misses.
        named: Everything that will be searched.
        known: What an earlier run has read.
    """

    def __init__(
        self, excluded: Sequence[Path], ours: Container[str], named: Sequence[str], known: Sequence[ImageSource]
    ) -> None:
        self._excluded = {path for folder in excluded for path in (os.path.abspath(folder), os.path.realpath(folder))}
        self._ours, self._known = ours, known
        self._searched = {os.path.realpath(path) for path in named if not is_address(path) and os.path.isdir(path)}
        self._others: Counter[str] = Counter()
        self._notes: list[str] = []
        self.found: dict[tuple[str, ...], ImageSource] = {}
        self.unreadable: dict[str, str] = {}
        self._bases: list[tuple[str, ...]] = []
        self._order: dict[tuple[str, ...], tuple[tuple[str, ...], int]] = {}
        self._archives: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was passed over that somebody may miss."""
        kinds = ", ".join(f"{count} x {suffix}" for suffix, count in self._others.most_common(6))
        fix = f" ({heif.FIX})" if heif.SUFFIXES & set(self._others) else ""
        return (*self._notes, *([f"not read, for these formats are not: {kinds}{fix}"] if kinds else []))

    def add(self, match: str, base: str | None = None) -> None:
        """Takes what a path or address leads to.

        Args:
            match: The path or address.
            base: The folder that names are relative to; None: `match`, or the folder of a file.
        """
        if is_archive(match) and not os.path.isdir(match):
            self._add_archive(match if is_address(match) else os.path.abspath(match))
        elif is_address(match):
            urls, folder = list_address(match)
            self._bases.append(tuple(part for part in address_parts(folder) if part))
            for url in urls:
                self._take(RemoteFile(url))
        else:
            path = Path(match)
            is_folder = path.is_dir()
            self._bases.append(Path(os.path.abspath(base or (path if is_folder else path.parent))).parts)
            for file in self._walk(path) if is_folder else [path]:
                absolute = Path(os.path.abspath(file))
                if not self._is_excluded(absolute.parent):
                    self._take(LocalFile(absolute))

    def take_known(self, match: str) -> bool:
        """Takes what an earlier run has read at a path or address, or below it. Returns whether there is any."""
        archive = None
        if is_archive(match):
            archive = match if is_address(match) else os.path.abspath(match)
            place = archive_parts(archive)
        elif is_address(match):
            try:
                place = tuple(part for part in address_parts(match) if part)
            except ValueError:  # no address at all
                return False
        else:
            place = Path(os.path.abspath(match)).parts
        below = [source for source in self._known if source.parts[: len(place)] == place]
        for source in below:
            self._take(source)
        if below and archive is not None:
            self._archives[archive] = None
        if below:
            self._bases.append(place[:-1] if any(source.parts == place for source in below) else place)
        return bool(below)

    def _add_archive(self, archive: str) -> None:
        members = list(list_archive(archive))
        opened = open_archive(archive)
        self._notes += [f"{without_query(archive)}: {note}" for note in opened.notes]
        self._others.update(s for name in opened.members() if (s := Path(name).suffix.lower()) in UNREAD_SUFFIXES)
        if not members:
            raise DataError(f"no image in {without_query(archive)}; archives in it are not searched")
        self._archives[archive] = None
        self._bases.append(archive_parts(archive))
        first: tuple[str, ...] | None = None
        for place, member in enumerate(members):
            if self._take(member) and opened.in_order:
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

    def _walk(self, folder: Path) -> Iterator[Path]:
        """The image files below a folder, in order of their names."""

        def refused(error: OSError) -> None:
            self.unreadable[printable(error.filename)] = f"the folder cannot be read: {error.strerror}"
            self.take_known(error.filename)

        for parent, folders, names in os.walk(folder, onerror=refused, followlinks=True):
            here = sorted(name for name in folders if not name.startswith("."))
            folders[:] = [name for name in here if self._leads_on(Path(parent, name))]
            for name in sorted(names):
                suffix = Path(name).suffix.lower()
                if name.startswith("."):
                    continue
                if suffix in IMAGE_SUFFIXES:
                    yield Path(parent, name)
                elif suffix in UNREAD_SUFFIXES:
                    self._others[suffix] += 1

    def _leads_on(self, folder: Path) -> bool:
        """Whether a folder below one that is searched is searched too."""
        if self._is_excluded(folder):
            others = [name for name in files_below(folder) if self._is_missed(folder / name)]
            if others:
                shown = ", ".join(map(printable, others[:3])) + ", ..." * (len(others) > 3)
                self._notes.append(f"passed over in {printable(folder)}, a folder of the output: {shown}")
            return False
        if not folder.is_symlink():
            return True
        real = os.path.realpath(folder)
        if os.path.join(os.path.realpath(folder.parent), "").startswith(os.path.join(real, "")):
            self._notes.append(f"{printable(folder)} is passed over: it is a link to a folder that it lies in")
            return False
        known = next((top for top in sorted(self._searched) if _is_visible_below(real, top)), None)
        if known is not None:
            self._notes.append(
                f"{printable(folder)} is passed over: it is a link to {printable(real)}, which is searched anyway"
            )
            return False
        self._searched.add(real)
        return True

    def _is_missed(self, file: Path) -> bool:
        is_thumbnail = file.parent.name == "gallery" and re.fullmatch(r"[0-9a-f]{32}\.jpg", file.name)
        return file.suffix.lower() in IMAGE_SUFFIXES and str(file) not in self._ours and not is_thumbnail

    def _is_excluded(self, folder: Path) -> bool:
        paths = (str(folder), os.path.realpath(folder))
        return any(path == top or path.startswith(top + os.sep) for path in paths for top in self._excluded)

    def image_set(self) -> ImageSet:
        """What was found, with names."""
        roots: dict[str, tuple[str, ...]] = {}
        for base in self._bases:  # the common folder of what was named on this machine, and of each host
            folder = roots.setdefault(base[0], base)
            common = 0
            while common < min(len(folder), len(base)) and folder[common] == base[common]:
                common += 1
            roots[base[0]] = folder[:common]
        alone = len(roots) == 1
        names = {}
        for place in self.found:
            below = place[len(roots[place[0]]) :]
            if not alone and is_address(place[0]):
                below = (*place[0].split("://"), *place[1:])
            names[place] = PurePosixPath(printable("/".join(below)))
        if len(set(names.values())) < len(names):
            raise DataError("two images would have the same name in the output; annotate the addresses apart")
        local = all(not is_address(top) for top in roots)
        folder_path = (Path(*next(iter(roots.values()))) if roots else Path.cwd()) if local else None
        root = printable(folder_path) if folder_path else ", ".join("/".join(root) for root in roots.values())
        archives = tuple(without_query(archive) for archive in self._archives)
        files = tuple(file for file in self._named(names) if self._fits(file))
        return ImageSet(root, folder_path, files, self.unreadable, archives, self.notes)

    def _fits(self, file: ImageFile) -> bool:
        """Whether files that are made from an image can have its name."""
        longest = max(map(len, _STEM_ENDINGS))
        *folders, last = (len(part.encode()) for part in file.stem.split("/"))
        if max([last + longest, *folders]) <= _LONGEST_PART and len(file.stem.encode()) <= _LONGEST_NAME:
            return True
        self.unreadable[file.name] = (
            f"{file.name[:80]}...: files that are made from it would have a name of more than {_LONGEST_PART} bytes, "
            f"or {_LONGEST_NAME} with its folders; give it a shorter one"
        )
        return False

    def _named(self, names: dict[tuple[str, ...], PurePosixPath]) -> tuple[ImageFile, ...]:
        stems = unique_stems([str(name) for name in names.values()])

        def order(item: tuple[tuple[str, ...], PurePosixPath]) -> tuple[str, int]:
            first, place = self._order.get(item[0], (item[0], 0))
            return str(names[first]), place

        return tuple(
            ImageFile(self.found[place], str(name), stems[str(name)])
            for place, name in sorted(names.items(), key=order)
        )


_STEM_ENDINGS = (".png", ".txt", ".xml")
"""What is put behind a stem: a file of this name must not be a folder of other images."""


_LONGEST_PART, _LONGEST_NAME = 255, 3000
"""Bytes of a file's name, and of a path below the output folder (Linux: NAME_MAX, and PATH_MAX with some room)."""


def unique_stems(names: Sequence[str]) -> dict[str, str]:
    """By name of an image, how files that are made from it are called before their ending: the name without its own
    ending, or with it where another image would have the same. Case does not count: the output may be unpacked where
    it is ignored.
    """
    count = Counter(_stem(name).casefold() for name in names)
    whole = {name.casefold() for name in names}
    folders = {str(parent).casefold() for name in names for parent in PurePosixPath(name).parents}
    stems, taken = {}, set[str]()
    for name in sorted(names):
        stem = _stem(name)
        if count[stem.casefold()] > 1 or (stem.casefold() in whole and stem != name):
            stem = name
        while stem.casefold() in taken or any(stem.casefold() + ending in folders for ending in _STEM_ENDINGS):
            stem = name if stem == _stem(name) != name else f"{stem}~"
        taken.add(stem.casefold())
        stems[name] = stem
    return stems


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _is_visible_below(path: str, top: str) -> bool:
    """Whether a search of `top` comes to `path`."""
    below = os.path.relpath(path, top).split(os.sep)
    return not any(part.startswith(".") and part != "." for part in below)


def _matches(argument: str) -> list[tuple[str, str | None]]:
    """The paths that an argument stands for; of a pattern with the folder that names are relative to."""
    if is_address(argument) or os.path.lexists(argument):
        return [(argument, None)]
    matches = sorted(glob.glob(argument, recursive=True)) if glob.has_magic(argument) else []
    if not matches:
        kind = "no file matches the pattern" if glob.has_magic(argument) else "there is no file or folder"
        raise DataError(f"{kind} {argument!r} (looked from {Path.cwd()}); check the spelling")
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), Path(argument).parts))
    return [(match, str(Path(*fixed))) for match in matches]


def _nothing_found(arguments: Sequence[str], notes: Sequence[str]) -> str:
    where = ", ".join(arguments) or "the list"
    seen: Counter[str] = Counter()
    for argument in arguments:
        for _, _, names in os.walk(argument):
            seen.update(Path(name).suffix.lower() or name for name in names)
    said = "".join(f"; {note}" for note in notes)
    if not seen:
        reason = said or ": it is empty"
        return f"no image in {where}{reason}; name a folder that holds images, or image files"
    kinds = ", ".join(f"{count} x {suffix}" for suffix, count in seen.most_common(6))
    return (
        f"no image in {where} (found {kinds}){said}; image files end in {', '.join(sorted(IMAGE_SUFFIXES))}; "
        "name a file itself to read it whatever it is called"
    )
