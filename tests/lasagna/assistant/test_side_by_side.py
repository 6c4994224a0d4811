"""Photos of a batch side by side: what one by one gives, with the cores shared out, and nothing left running."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lasagna import Lasagna, load_image
from lasagna.assistant.side_by_side import side_by_side


@pytest.fixture
def cores() -> Iterator[int]:
    """torch computes with four threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "each"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_the_cores_are_shared_out(cores: int, count: int, each: int) -> None:
    assert side_by_side(lambda i: (i, torch.get_num_threads()), count) == [(i, each) for i in range(count)]
    assert torch.get_num_threads() == cores
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))  # one that torch has not seen
    thread.start()
    thread.join()
    assert found == [cores]


@pytest.mark.parametrize("count", [4, 2])
def test_they_run_at_the_same_time_and_are_not_shared_out_again(cores: int, count: int) -> None:
    together = threading.Barrier(count, timeout=30)

    def run(number: int) -> list[int]:
        together.wait()
        mine = threading.get_ident()
        return side_by_side(lambda i: i if threading.get_ident() == mine else -1, 3)

    assert side_by_side(run, count) == [[0, 1, 2]] * count


def test_nothing_runs_any_more_when_one_has_failed(cores: int) -> None:
    ended: list[int] = []

    def run(number: int) -> int:
        if number in (1, 2):
            raise ValueError(f"photo {number}")
        time.sleep(0.05 * number)
        ended.append(number)
        return number

    with pytest.raises(ValueError, match="photo 1"):
        side_by_side(run, 6)
    assert sorted(ended) == [0, 3, 4, 5]
    assert side_by_side(lambda i: i, 6) == list(range(6))


def test_a_signal_leaves_nothing_running(cores: int) -> None:
    begun: list[int] = []
    ended: list[int] = []

    def run(number: int) -> None:
        begun.append(number)
        if number == 0:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        time.sleep(0.3)
        ended.append(number)

    def too_long(*_: object) -> None:
        raise TimeoutError("too long")

    before = signal.signal(signal.SIGALRM, too_long)
    try:
        with pytest.raises(TimeoutError):
            side_by_side(run, 50)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sorted(ended) == sorted(begun)
    assert len(begun) < 50


def test_several_callers_at_once(cores: int) -> None:
    found: dict[int, list[int]] = {}

    def call(number: int) -> None:
        found[number] = side_by_side(lambda i: number * i, 2 + number % 3)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(12)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == {number: [number * i for i in range(2 + number % 3)] for number in range(12)}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_has_threads_of_its_own(cores: int) -> None:
    assert side_by_side(lambda i: i, 3) == [0, 1, 2]
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(side_by_side(lambda i: i + 1, 3)))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answers.get() == [1, 2, 3]


def test_answers_are_those_of_single_photos(cores: int, photos: dict[str, Path]) -> None:
    model = Lasagna.random(0)
    images = [np.asarray(load_image(path).resize((96, 64 + 16 * i))) for i, path in enumerate(photos.values())]
    names = [["sky", "cat", "cup"], ["tree", "sky"], ["rocket"], ["cat", "dog", "person", "road"], ["sky"]]
    encoded = model.encode_images(images)
    for given in (images, encoded, [encoded[0], *images[1:]]):
        together = model.segment_batch(given, names)
        for answer, image, asked in zip(together, images, names, strict=True):
            alone = model.segment(image, asked)
            assert answer.size == alone.size
            for one, other in zip(answer.classes, alone.classes, strict=True):
                assert one.name == other.name
                assert one.probability == pytest.approx(other.probability, abs=1e-5)
                assert one.is_present == other.is_present
                assert (one.mask is None) == (other.mask is None)
                if one.mask is not None and other.mask is not None:
                    assert (one.mask != other.mask).mean() < 1e-3
