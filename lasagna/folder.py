"""Which image files an argument list names, and what they are called in the output."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lasagna.errors import DataError
from lasagna.image import IMAGE_SUFFIXES


@dataclass(frozen=True)
class ImageFile:
    """An image to annotate.

    Attributes:
        path: Absolute.
        name: Path relative to the images' common folder, with "/", printable. No two images have the same.
        stem: `name` without its ending, where that still names one image, else `name`: for files made from the image.
    """

    path: Path
    name: str
    stem: str


@dataclass(frozen=True)
class ImageSet:
    """The images, sorted by name, the common folder of all of them, and what could not be searched (path: reason)."""

    root: Path
    files: tuple[ImageFile, ...]
    unreadable: dict[str, str]


def find_images(arguments: Sequence[str], *, exclude: Sequence[Path] = ()) -> ImageSet:
    """The images that the arguments name, each once.

    An argument is a file (taken whatever it is called), a folder (searched with all below it for `IMAGE_SUFFIXES`;
    hidden files and folders, whose names start with a dot, are passed over) or a glob pattern, in which `**` stands for
    any depth. Links to files are followed, links to folders inside a searched folder are not.

    Args:
        arguments: As typed.
        exclude: Folders whose content is never taken: the output of an earlier run may lie among the images.

    Raises:
        DataError: An argument matches nothing, or there is no image at all.
    """
    unreadable: dict[str, str] = {}
    excluded = [Path(os.path.abspath(folder)) for folder in exclude]
    paths: dict[Path, None] = {}
    for argument in arguments:
        for match in _matches(argument):
            found = [match] if not match.is_dir() else list(_walk(match, unreadable))
            for path in found:
                absolute = Path(os.path.abspath(path))
                if not any(absolute.is_relative_to(folder) for folder in excluded):
                    paths[absolute] = None
    if not paths and not unreadable:
        raise DataError(_nothing_found(arguments))
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path.cwd()
    return ImageSet(root, _named(list(paths), root), unreadable)


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that can be written as UTF-8, whatever bytes the file system holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _matches(argument: str) -> list[Path]:
    if os.path.lexists(argument):
        return [Path(argument)]
    matches = sorted(glob.glob(argument, recursive=True)) if glob.has_magic(argument) else []
    if not matches:
        kind = "no file matches the pattern" if glob.has_magic(argument) else "there is no file or folder"
        raise DataError(f"{kind} {argument!r} (looked from {Path.cwd()}); check the spelling")
    return [Path(match) for match in matches]


def _walk(folder: Path, unreadable: dict[str, str]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        unreadable[printable(error.filename)] = f"the folder cannot be read: {error.strerror}"

    for parent, folders, names in os.walk(folder, onerror=refused):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def _named(paths: list[Path], root: Path) -> tuple[ImageFile, ...]:
    names = {path: PurePosixPath(printable(path.relative_to(root))) for path in paths}
    stems: dict[str, int] = {}
    for name in names.values():  # compared without case: the output may be unpacked on a file system that ignores it
        stem = str(name.with_suffix("")).casefold()
        stems[stem] = stems.get(stem, 0) + 1
    files = []
    for path, name in names.items():
        stem = str(name.with_suffix(""))
        files.append(ImageFile(path, str(name), stem if stems[stem.casefold()] == 1 else str(name)))
    return tuple(sorted(files, key=lambda file: file.name))


def _nothing_found(arguments: Sequence[str]) -> str:
    where = ", ".join(arguments)
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
