"""What `lasagna bench hour` looks at: growth must be seen, and a restart must not be taken for it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import redis

from lab.service.watch import keys_by_kind, megabytes, memory_of_group, plot_samples, table_of, take_sample, trend
from lasagna.errors import DataError

MINUTES = np.arange(0, 60, 0.5)


def samples(values: np.ndarray) -> list[dict[str, float]]:
    return [{"minutes": float(at), "mib:x": float(value)} for at, value in zip(MINUTES, values, strict=True)]


def test_a_leak_is_seen() -> None:
    found = trend(samples(200 + MINUTES), "mib:x")
    assert found["an_hour"] == pytest.approx(60)
    assert found["last"] - found["first"] > 30


def test_what_is_loaded_at_first_and_a_restart_are_no_leak() -> None:
    values = np.minimum(100 + 40 * MINUTES, 300.0)
    values[60:64] = 0.0
    found = trend(samples(values), "mib:x")
    assert (found["first"], found["last"], found["an_hour"], found["most"]) == (300.0, 300.0, 0.0, 300.0)


def test_a_figure_that_comes_later_was_nothing_before() -> None:
    found = trend([*samples(np.zeros(len(MINUTES))), {"minutes": 60.0, "keys:new": 5.0}], "keys:new")
    assert (found["first"], found["last"], found["most"]) == (0.0, 0.0, 5.0)


def test_keys_are_told_apart(redis_db: str, tmp_path: Path) -> None:
    connection = redis.Redis.from_url(redis_db)
    for name in ("lasagna:work:aa", "lasagna:result:bb", "rq:job:cc", "lasagna:project:3.100", "lasagna:counters"):
        connection.set(name, "1")
    assert keys_by_kind(connection) == {"of predictions": 2, "of RQ": 1, "others": 2}
    sample = take_sample(0.0, {"own": os.getpgid(0)}, connection, {"files": tmp_path})
    assert {"minutes", "mib:own", "mib:redis data", "keys:others", "mb:files"} <= set(sample)


def test_memory_of_all_processes_of_a_group() -> None:
    program = "import sys; x = b'x' * (50 << 20); print(flush=True); sys.stdin.read()"
    held = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    command = [sys.executable, "-c", held]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        found = memory_of_group(process.pid)
        process.stdin.close()
    assert 50 < found < 200
    assert memory_of_group(process.pid) == 0


def test_links_take_their_place_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10) * 100_000)
    before = megabytes(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    assert megabytes(tmp_path) == before >= 1.0


def test_the_plot_is_written(tmp_path: Path) -> None:
    panels = [("Memory", "MiB", lambda name: name.startswith("mib:"))]
    plot_samples(tmp_path / "x.svg", samples(200 + MINUTES), panels)
    assert "Memory" in (tmp_path / "x.svg").read_text()
    with pytest.raises(DataError, match="cannot be written"):
        plot_samples(tmp_path / "x.nothing", samples(MINUTES), panels)
    assert [row["figure"] for row in table_of(samples(MINUTES), ["mib:x"])] == ["mib:x"]
