"""Puts a set in place of another and kills itself at the N-th step of that: `python killed_swap.py OUT LETTER N`.

The set is three label files and their table, in two folders, and a file beside them, all holding one letter.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from lasagna.annotate import swap
from lasagna.annotate.output import FileSet, OutputFolder

NAMES = ("one/table", "one/a.txt", "one/deep/b.txt", "two/table", "two/c.txt", "three.json")


def sets(letter: str) -> list[FileSet]:
    """The three sets, whose meaning is the letter."""
    one, two = (FileSet(top, (top,), letter, (f"{top}/table", letter), _is_data) for top in ("one", "two"))
    return [one, two, FileSet("three", ("three.json",))]


def _is_data(name: str) -> bool:
    return name.endswith(".txt")


def write(out: Path, letter: str) -> list[str]:
    """Writes the set. Returns what was kept."""
    folder = OutputFolder(out)
    folder.clear()
    folder.check(sets(letter))
    for name in NAMES:
        folder.write(name, letter)
    plans, kept = folder.plan(sets(letter))
    return [file.name for file in [*kept, *folder.apply(plans)]]


def main() -> None:
    """Counts every call that changes a name on disk, and dies at the given one."""
    out, letter, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    left = steps

    def counted(call: Any) -> Any:
        def instead(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return instead

    for name in ("rename", "replace", "link", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    swap._exchange = counted(swap._exchange)  # type: ignore[assignment]
    write(out, letter)


if __name__ == "__main__":
    main()
