"""What running processes take as time goes by: memory, keys of Redis, files. For `lasagna bench hour`.

What always holds: a process that ended counts with 0 until it is started again; figures are of one moment, within a
second; what cannot be read (Redis is down, a file went away) is left out of that moment.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import redis

from backend.queue.store import PREFIX
from lasagna.errors import DataError

Sample = dict[str, float]
"""Figures of one moment by name: "minutes", "mib:PROCESS", "mib:redis data", "keys:KIND", "mb:FOLDER"."""


def memory_of_group(group: int) -> float:
    """MiB of a process group: what its processes alone have, and their share of what they have together (Linux)."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            if os.getpgid(int(folder.name)) == group:
                found = re.search(r"^Pss:\s+(\d+) kB", (folder / "smaps_rollup").read_text(), re.M)
                total += int(found[1]) if found else 0
    return total / 1024


def keys_by_kind(connection: "redis.Redis") -> Counter[str]:
    """How many keys Redis has: of predictions and their records, which are kept for days, of RQ's jobs, which are kept
    for minutes, and all others."""
    kinds: Counter[str] = Counter()
    for key in connection.scan_iter(count=2000):
        name = key.decode(errors="replace")
        is_kept = name.startswith((f"{PREFIX}work:", f"{PREFIX}result:"))
        kinds["of predictions" if is_kept else "of RQ" if name.startswith("rq:") else "others"] += 1
    return kinds


def megabytes(folder: Path) -> float:
    """What the files of a folder take on the disk, each of several links counted once."""
    seen: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        with suppress(OSError):
            found = path.lstat()
            seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values()) / 1e6


def take_sample(
    began: float, groups: Mapping[str, int], connection: "redis.Redis", folders: Mapping[str, Path]
) -> Sample:
    """The figures of now.

    Args:
        began: `time.monotonic()` of minute 0.
        groups: The processes' groups by name.
        connection: To Redis.
        folders: By name.
    """
    sample = {"minutes": (time.monotonic() - began) / 60}
    sample |= {f"mib:{name}": memory_of_group(group) for name, group in groups.items()}
    with suppress(redis.RedisError):
        sample["mib:redis data"] = int(connection.info("memory")["used_memory"]) / 2**20
        sample |= {f"keys:{kind}": float(count) for kind, count in keys_by_kind(connection).items()}
    return sample | {f"mb:{name}": megabytes(folder) for name, folder in folders.items()}


def trend(samples: Sequence[Sample], name: str) -> dict[str, float]:
    """How a figure went: the medians of the first and of the last third of the time after a sixth of it (in which
    everything is loaded and filled), the largest, and the change an hour of a straight line (Theil and Sen, by medians,
    which a restart does not move)."""
    after = samples[len(samples) // 6 :]
    times, values = (np.array([one.get(key, 0.0) for one in after]) for key in ("minutes", name))
    third = max(1, len(after) // 3)
    first, second = np.triu_indices(len(after), 1)
    slopes = (values[second] - values[first]) / np.maximum(times[second] - times[first], 1e-9)
    return {
        "first": float(np.median(values[:third])),
        "last": float(np.median(values[-third:])),
        "most": float(max(one.get(name, 0.0) for one in samples)),
        "an_hour": float(np.median(slopes)) * 60 if len(slopes) else 0.0,
    }


def plot_samples(
    path: Path, samples: Sequence[Sample], panels: Iterable[tuple[str, str, Callable[[str], bool]]]
) -> None:
    """Draws the figures over time.

    Args:
        path: Its ending says whether SVG, PNG or PDF.
        samples: In the order of time.
        panels: For each its title, the unit, and which figures it shows.

    Raises:
        DataError: The file cannot be written, or its ending is none of those.
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = list(panels)
    names = sorted({name for one in samples for name in one} - {"minutes"})
    minutes = [one["minutes"] for one in samples]
    with matplotlib.rc_context({"svg.hashsalt": "lasagna", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3}):
        drawing = Figure((8.0, 2.6 * len(panels)), layout="constrained")
        for axes, (title, unit, is_shown) in zip(
            drawing.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
        ):
            for name in filter(is_shown, names):
                axes.plot(minutes, [one.get(name, np.nan) for one in samples], label=name.partition(":")[2], lw=1)
            axes.set(title=title, xlabel="minutes", ylabel=unit, ylim=(0, None))
            axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
        try:
            drawing.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: the plot cannot be written there ({error})") from error


def table_of(samples: Sequence[Sample], names: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each figure: `trend`."""
    return [{"figure": name, **trend(samples, name)} for name in names]
