"""The store of features: what is kept, what leaves, and what damage does."""

import multiprocessing
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lasagna.errors import ConfigError
from training.engine.feature_store import FeatureStore


def tensors(seed: int, count: int = 1000) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"tokens": torch.randn(count, generator=generator), "ids": torch.arange(3)}


def key(number: int) -> str:
    return f"{number:02x}{'0' * 30}"


def age(store: FeatureStore, number: int, seconds: float) -> None:
    path = store._path(key(number))
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_what_is_stored_is_read_in_half_precision(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "new" / "folder")
    assert store.get(key(1)) is None
    put = store.put(key(1), tensors(1), {"sizes": [1, 2]})
    got = FeatureStore(store.folder).get(key(1))
    assert got is not None
    assert key(1) in store
    assert got.notes == put.notes == {"sizes": [1, 2]}
    assert got.tensors["tokens"].dtype == torch.float16
    torch.testing.assert_close(got.tensors["tokens"], tensors(1)["tokens"].half(), rtol=0, atol=0)
    torch.testing.assert_close(got.tensors["ids"], torch.arange(3))
    assert all(torch.equal(put.tensors[name], got.tensors[name]) for name in got.tensors)


def test_what_half_precision_cannot_hold_stays_as_it_is(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.put(key(1), {"large": torch.tensor([1e6, 1.0]), "bf16": torch.tensor([0.1], dtype=torch.bfloat16)})
    got = store.get(key(1))
    assert got is not None
    assert got.tensors["large"].tolist() == [1e6, 1.0]
    assert got.tensors["bf16"].dtype == torch.float16


def test_the_least_recently_used_leave_first(tmp_path: Path) -> None:
    size = FeatureStore(tmp_path / "one").put(key(0), tensors(0)) and FeatureStore(tmp_path / "one").size()
    store = FeatureStore(tmp_path / "many", limit=size * 10)
    for number in range(10):
        store.put(key(number), tensors(number))
        age(store, number, 1000 - number)
    assert len(store) == 10
    assert store.get(key(0)) is not None  # used: now the youngest
    store.put(key(10), tensors(10))
    kept = [number for number in range(11) if key(number) in store]
    assert kept == [0, *range(3, 11)]
    assert store.size() <= size * 9


def test_a_folder_that_is_over_the_limit_is_cut_back(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    for number in range(20):
        store.put(key(number), tensors(number))
    limit = store.size() // 2
    FeatureStore(tmp_path, limit).put(key(20), tensors(20))
    assert store.size() <= limit
    assert key(20) in store


DAMAGE = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-10],
    "no header": lambda data: data[:4],
    "another file": lambda data: b"\x89PNG" * 100,
    "a changed byte of a tensor": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "changed notes": lambda data: data.replace(b"sizes", b"sizzs"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_a_miss_and_goes(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore(tmp_path)
    store.put(key(1), tensors(1), {"sizes": [1, 2]})
    path = store._path(key(1))
    path.write_bytes(DAMAGE[case](path.read_bytes()))
    assert store.get(key(1)) is None
    assert f"{path} is damaged" in caplog.text
    assert not path.exists()
    store.put(key(1), tensors(1))
    assert store.get(key(1)) is not None


def test_what_another_process_evicts_is_a_miss(tmp_path: Path) -> None:
    store, other = FeatureStore(tmp_path), FeatureStore(tmp_path, limit=1)
    store.put(key(1), tensors(1))
    other.put(key(2), tensors(2))
    assert (store.get(key(1)), len(store)) == (None, 0)
    store.put(key(1), tensors(1))
    assert store.get(key(1)) is not None


@contextmanager
def small_files() -> Iterator[None]:
    """The system refuses to write past the 1000th byte of a file, as a full disk would. Not a fixture: pytest's own
    output may be a longer file, and is written between the test and the end of its fixtures."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_ends_the_storing_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore(tmp_path)
    with small_files():
        put = store.put(key(1), tensors(1))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert put.tensors["tokens"].dtype == torch.float16
    assert "no more features are kept" in caplog.text
    assert store.is_full
    store.put(key(2), tensors(2, count=10))
    assert key(2) not in store


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_holds_nothing(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ConfigError, match="positive number of bytes"):
        FeatureStore(tmp_path, limit)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="features cannot be kept there"):
        FeatureStore(tmp_path / "file" / "folder")


def test_what_a_killed_process_left_half_written_goes_after_a_while(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.put(key(1), tensors(1))
    (half_written,) = (path.with_name(".half-1-0a") for path in tmp_path.rglob("*.safetensors"))
    half_written.write_bytes(b"0" * 5000)
    size = store.size()
    FeatureStore(tmp_path, limit=size).put(key(2), tensors(2))
    assert half_written.exists()  # another process may be writing it
    os.utime(half_written, (0, 0))
    FeatureStore(tmp_path, limit=size).put(key(3), tensors(3))
    assert not half_written.exists()


def work(folder: Path, limit: int, seed: int) -> None:
    """Reads and writes over a few keys while others do, under a limit that makes all of them evict."""
    torch.set_num_threads(1)
    store = FeatureStore(folder, limit)
    for step in range(150):
        number = (step * 7 + seed * 3) % 12
        got = store.get(key(number))
        if got is None:
            store.put(key(number), tensors(number))
        else:
            assert torch.equal(got.tensors["tokens"], tensors(number)["tokens"].half())
    assert not store.is_full


@pytest.mark.slow
def test_several_processes_at_once(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.put(key(0), tensors(0))
    limit = store.size() * 6
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(tmp_path, limit, seed)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert 0 < store.size() <= limit * 1.5
    assert not list(tmp_path.rglob(".*"))
