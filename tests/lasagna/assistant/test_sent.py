"""A model that is pickled, copied, sent to another process, and forked beside a running call."""

import copy
import multiprocessing
import os
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lasagna import Lasagna, Segmentation

CLASSES = ["sky", "road", "cat"]


@pytest.fixture(scope="module")
def model() -> Lasagna:
    return Lasagna.random(seed=1)


def photo(seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((48, 32)))


def same(one: Segmentation, other: Segmentation) -> bool:
    return all(
        a.name == b.name
        and a.probability == pytest.approx(b.probability, abs=1e-5)
        and (a.mask is None) == (b.mask is None)
        and (a.mask is None or np.array_equal(a.mask, b.mask))  # type: ignore[arg-type]
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy"])
def test_copies_answer_alike(how: str, model: Lasagna) -> None:
    copies = {"pickle": lambda m: pickle.loads(pickle.dumps(m)), "copy": copy.copy, "deepcopy": copy.deepcopy}
    other = copies[how](model)
    assert same(other.segment(photo(), CLASSES), model.segment(photo(), CLASSES))
    assert (other.model is model.model) == (how == "copy")
    assert (other._lock is model._lock) == (how == "copy"), "what shares weights takes turns"
    assert other.version == model.version


def test_a_quantised_model(tmp_path: Any) -> None:
    Lasagna.random(seed=1).save_pretrained(tmp_path / "tiny")
    model = Lasagna.from_pretrained(tmp_path / "tiny", device="cpu", quantise="int8")
    assert same(pickle.loads(pickle.dumps(model)).segment(photo(), CLASSES), model.segment(photo(), CLASSES))


def test_a_copy_of_a_model_that_is_in_use(model: Lasagna) -> None:
    with model._lock:
        other = copy.deepcopy(model)
    taken = threading.Thread(target=other.segment, args=(photo(), CLASSES))
    taken.start()
    taken.join(60)
    assert not taken.is_alive()


class Answers(Dataset):  # type: ignore[type-arg]
    """What a model answers, computed where the data are made."""

    def __init__(self, model: Lasagna) -> None:
        self._model = model

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> list[float]:
        torch.set_num_threads(1)
        return [answer.probability for answer in self._model.segment(photo(index), CLASSES)]


@pytest.mark.slow
def test_workers_that_are_spawned(model: Lasagna) -> None:
    loader = DataLoader(Answers(model), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    found = [[float(value) for value in values] for values in loader]
    expected = [[answer.probability for answer in model.segment(photo(i), CLASSES)] for i in range(2)]
    assert np.allclose(found, expected, atol=1e-5)


def _answer(model: Lasagna, answers: Any) -> None:
    torch.set_num_threads(1)
    answers.put([answer.probability for answer in model.segment(photo(), CLASSES)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_beside_a_running_call(model: Lasagna, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to take the lock along as it was: closed, for ever."""
    began, prepare = threading.Event(), model.model.encoder.prepare

    def slowly(image: np.ndarray) -> Any:
        if threading.current_thread().name == "slow":
            began.set()
            time.sleep(2)
        return prepare(image)

    expected = [answer.probability for answer in model.segment(photo(), CLASSES)]
    monkeypatch.setattr(model.model.encoder, "prepare", slowly)
    running = threading.Thread(target=model.segment, args=(photo(1), CLASSES), name="slow")
    running.start()
    assert began.wait(30)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_answer, args=(model, answers))
    child.start()
    try:
        assert np.allclose(answers.get(timeout=60), expected, atol=1e-5)
    finally:
        child.join(10)
        child.kill()
        running.join(30)
    assert same(model.segment(photo(), CLASSES), model.segment(photo(), CLASSES)), "and here it goes on"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_inside_a_call(model: Lasagna) -> None:
    with model._lock:
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
