"""Puts the new files of a folder in place of the old ones, all at once.

What always holds: whenever the process is killed, the folder is the old one as a whole or the new one as a whole, where
the file system can exchange two folders (Linux, `renameat2`); where it cannot, for an instant there is none, and where
the folder is a link or a mount, files are replaced one by one. Files that are neither written nor removed are carried
over as they are, whoever made them, and what somebody saves meanwhile is not lost.
"""

import ctypes
import os
import shutil
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def files_below(folder: Path) -> Iterator[str]:
    """Every file and link below a folder, relative to it, with "/"; links are not followed."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted([*names, *links]):
            yield os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")


def swap_folder(current: Path, staged: Path, fresh: Path, write: Collection[str], remove: Collection[str]) -> list[str]:
    """Replaces a folder by one with other files.

    Args:
        current: The folder; it need not exist.
        staged: Where the files to write lie; they are moved from there.
        fresh: A path on the same file system, where the new folder is built; nothing is left there.
        write: Names, relative to the folder, to be taken from `staged`.
        remove: Names that are taken away.

    Returns:
        Names that somebody changed meanwhile: they are as that person left them.
    """
    fresh.mkdir(parents=True)
    if not os.path.lexists(current):
        _move_files(staged, fresh, write)
        os.rename(fresh, current)
        return []
    if current.is_symlink() or os.path.ismount(current) or current.stat().st_dev != fresh.stat().st_dev:
        fresh.rmdir()
        replace_files(current, staged, write, remove)
        return []
    leaving = {*write, *remove}
    before = {name: _state(current / name) for name in files_below(current)}
    for name in before.keys() - leaving:
        _carry(current / name, fresh / name)
    for parent, folders, names in os.walk(current):
        below = fresh / os.path.relpath(parent, current)
        if not folders and not names and os.path.relpath(parent, current) not in leaving:
            below.mkdir(parents=True, exist_ok=True)
        if below.is_dir():
            shutil.copymode(parent, below)
    _move_files(staged, fresh, write)
    try:
        _exchange(fresh, current)
    except OSError:  # a layered file system may refuse to rename a folder
        replace_files(current, fresh, write, remove)
        shutil.rmtree(fresh)
        return []
    late = []
    for name in list(files_below(fresh)):
        if _state(fresh / name) != before.get(name):
            (current / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(fresh / name, current / name)
            late.append(name)
    shutil.rmtree(fresh)
    return late


def replace_files(folder: Path, staged: Path, write: Collection[str], remove: Collection[str]) -> None:
    """Replaces files of a folder one by one; arguments as of `swap_folder`."""
    for name in remove:
        path = folder / name
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == folder or any(parent.iterdir()):
                break
            parent.rmdir()
    _move_files(staged, folder, write)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C has no effect inside: what goes on is short, and should be done or not begun."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _move_files(source: Path, target: Path, names: Collection[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(source / name, target / name)
        except OSError:  # another file system, behind a link
            beginning = os.fsdecode(os.fsencode((target / name).name)[:100])
            beside = (target / name).with_name(f".{beginning}.tmp")
            beside.unlink(missing_ok=True)
            shutil.copy2(source / name, beside, follow_symlinks=False)
            os.replace(beside, target / name)


def _carry(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links, or a file that has too many
        shutil.copy2(source, target, follow_symlinks=False)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _exchange(one: Path, other: Path) -> None:
    """Exchanges two folders of one file system."""
    library = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    try:
        if library.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
    except AttributeError:  # a C library without it
        pass
    aside = one.with_name(f"{one.name}.aside")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)
