"""Corrections and heads in a folder: numbers, content, several writers, and `kill -9` at any moment."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lasagna.errors import CheckpointError, DataError
from lasagna.instant.fit import fit_head
from lasagna.instant.store import HeadStore
from tests.lasagna.instant.instant_world import made_correction


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    return HeadStore(tmp_path / "head")


def test_without_a_correction_there_is_no_head(store: HeadStore) -> None:
    assert store.refresh() is None
    assert store.current() is None
    assert store.corrections == []


def test_every_change_makes_a_numbered_head(store: HeadStore) -> None:
    for seed in range(3):
        store.put(made_correction(seed))
        head = store.refresh()
        assert head is not None
        assert head.number == seed + 1
    assert store.refresh().number == 3  # nothing changed
    store.put(made_correction(2))
    assert store.refresh().number == 3  # nor by the same content again
    assert store.remove("photo 1")
    assert not store.remove("photo 1")
    assert store.refresh().number == 4
    assert HeadStore(store.folder).current().to_bytes() == store.current().to_bytes()


def test_its_head_is_that_of_its_corrections(store: HeadStore) -> None:
    made = [made_correction(seed).numbered(seed + 1) for seed in range(7)]
    for correction in made:
        store.put(correction)
        store.refresh()
    head = store.refresh()
    other = fit_head(made, number=head.number)
    assert head.digest == other.digest
    assert head.weight.equal(other.weight)


def test_what_another_process_does_is_seen(store: HeadStore) -> None:
    other = HeadStore(store.folder)
    store.put(made_correction(0))
    other.put(made_correction(1))
    assert [known.id for known in store.corrections] == ["photo 0", "photo 1"]
    other.remove("photo 0")
    assert [known.id for known in store.corrections] == ["photo 1"]


def test_a_replaced_correction_is_the_newest(store: HeadStore) -> None:
    for seed in range(3):
        store.put(made_correction(seed))
    store.put(dataclasses.replace(made_correction(9), id="photo 0"))
    assert [known.id for known in store.corrections] == ["photo 1", "photo 2", "photo 0"]


def test_only_the_newest_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = HeadStore(tmp_path, limit=3)
    for seed in range(5):
        store.put(made_correction(seed))
    assert [known.id for known in store.corrections] == ["photo 2", "photo 3", "photo 4"]
    assert len(list((tmp_path / "corrections").iterdir())) == 3
    assert "only the newest 3 count" in caplog.text


def test_rolling_back_holds_until_corrections_change(store: HeadStore) -> None:
    for seed in range(3):
        store.put(made_correction(seed))
        store.refresh()
    assert store.rollback(2).number == 2
    assert store.refresh().number == store.current().number == 2
    store.put(made_correction(3))
    assert store.refresh().number == 4
    with pytest.raises(CheckpointError, match=r"no head h9 .*; there are: h1, h2, h3, h4"):
        store.rollback(9)


def test_taking_the_last_correction_away_leaves_no_head(store: HeadStore) -> None:
    store.put(made_correction(0))
    store.refresh()
    store.remove("photo 0")
    assert store.refresh() is None
    assert store.current() is None
    store.put(made_correction(1))
    assert store.refresh().number == 2  # numbers only grow


def test_old_heads_leave(store: HeadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lasagna.instant.store.KEPT_HEADS", 3)
    for seed in range(5):
        store.put(made_correction(seed))
        store.refresh()
    assert sorted(path.name[:2] for path in (store.folder / "heads").iterdir()) == ["h3", "h4", "h5"]


def test_a_promotion_clears_it(store: HeadStore) -> None:
    store.put(made_correction(0))
    encoder = store.corrections[0].encoder
    assert store.is_of(encoder, "model-1")
    assert not store.is_of(encoder, "model-2")
    other = made_correction(1, model=False)
    with pytest.raises(DataError, match="cannot be learnt together"):
        store.put(other)
    assert len(store.corrections) == 1
    store.clear()
    store.put(other)
    assert [known.version for known in store.corrections] == [""]


def test_a_damaged_correction_does_not_count(store: HeadStore, caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(2):
        store.put(made_correction(seed))
    path = next((store.folder / "corrections").iterdir())
    path.write_bytes(path.read_bytes()[:50])
    assert len(HeadStore(store.folder).corrections) == 1
    assert "does not count" in caplog.text


@pytest.mark.parametrize("broken", ["head", "pointer"])
def test_a_head_that_cannot_be_read_is_made_again(store: HeadStore, broken: str) -> None:
    for seed in range(2):
        store.put(made_correction(seed))
        store.refresh()
    good = store.current()
    path = store.path(2) if broken == "head" else store.folder / "current.json"
    path.write_bytes(path.read_bytes()[:9])
    head = store.refresh()
    assert head.number == 3
    assert head.weight.equal(good.weight)
    assert store.current().digest == good.digest


def test_a_damaged_pointer_says_so(store: HeadStore) -> None:
    store.put(made_correction(0))
    store.refresh()
    (store.folder / "current.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"current.json is damaged .*; remove it"):
        store.current()


_WRITER = """
import os, sys
from lasagna.instant.store import HeadStore
from tests.lasagna.instant.instant_world import made_correction

made = [made_correction(seed) for seed in range(40)]
for _ in sys.stdin:  # a line starts a writer; the process that waits has loaded everything
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)
        continue
    store = HeadStore(sys.argv[1])
    for correction in made:
        with store.lock():
            store.put(correction)
            with open(sys.argv[2], "a") as file:
                file.write(correction.id + "\\n")
            store.refresh()
    os._exit(0)
"""


@pytest.mark.slow
def test_kills_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    """20 kills in the middle of 40 corrections; every writer begins again with the first. The head at the end is that
    of one that was built at once."""
    rng = random.Random(0)
    folder, written = tmp_path / "head", tmp_path / "written"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder), str(written)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None

        def start() -> int:
            starter.stdin.write("\n")
            starter.stdin.flush()
            return int(starter.stdout.readline())

        kills = 0
        for _ in range(20):
            writer = start()
            time.sleep(rng.uniform(0.01, 0.3))
            with suppress(ProcessLookupError):  # a quick machine may be through
                os.kill(writer, signal.SIGKILL)
            kills += os.WIFSIGNALED(int(starter.stdout.readline()))
            acknowledged = set(written.read_text().split("\n")[:-1]) if written.exists() else set()
            known = [each.id for each in HeadStore(folder).corrections]
            assert acknowledged <= set(known)
            assert len(known) == len(set(known)) <= 40
        assert kills >= 5
        start()
        assert int(starter.stdout.readline()) == 0
        starter.stdin.close()
    store = HeadStore(folder)
    head = store.refresh()
    assert head is not None
    once = fit_head([made_correction(seed).numbered(seed + 1) for seed in range(40)], number=head.number)
    assert [each.id for each in store.corrections] == [f"photo {seed}" for seed in range(40)]
    assert head.weight.equal(once.weight)
    assert head.bias.equal(once.bias)
    assert json.loads((folder / "current.json").read_text())["of"] == head.digest
