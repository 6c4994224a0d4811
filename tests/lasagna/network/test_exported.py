"""nano's encoder as OpenVINO runs it: the same answers, and torch where the engine cannot be."""

import copy
import multiprocessing
import os
import pickle
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from lasagna import Lasagna, load_image
from lasagna.errors import ConfigError
from lasagna.network import exported
from lasagna.network.exported import OpenVinoEngine, use_openvino
from lasagna.network.vision import EncodedImages

pytestmark = pytest.mark.slow  # tracing a network takes seconds

NAMES = ["person", "cat", "sky", "building", "tree", "grass", "car", "dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def fast(folder: Path) -> Lasagna:
    model = Lasagna.from_pretrained("nano", device="cpu", dtype="float32")
    use_openvino(model.model.encoder, folder)
    return model


@pytest.fixture(scope="module")
def plain() -> Lasagna:
    return Lasagna.from_pretrained("nano", device="cpu", dtype="float32")


def values(found: EncodedImages) -> list[torch.Tensor]:
    assert found.pixel_embedding is not None
    assert found.skips is not None
    assert found.stages is not None
    return [found.tokens, found.embedding, found.pixel_embedding, *found.skips, *found.stages]


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 384, 512), (2, 512, 352), (1, 32, 512)], ids=["wide", "two, high", "a strip"])
def test_outputs_are_those_of_torch(fast: Lasagna, plain: Lasagna, shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    pixels = {"image": torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))}
    encoder = fast.model.encoder
    assert encoder.engine.runs(pixels["image"])
    found, wanted = (values(model.model.encoder(pixels)) for model in (fast, plain))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
    again = values(encoder({"image": torch.zeros(1, 3, height, width)}))
    assert not torch.equal(again[0][:1], found[0][:1])  # and what was given before has not changed
    assert (found[0] - wanted[0]).abs().max() <= 1e-4 * wanted[0].abs().max()


def test_answers_are_those_of_torch(fast: Lasagna, plain: Lasagna, photos: dict[str, Path]) -> None:
    for photo in photos.values():
        image = load_image(photo)
        answer, wanted = (model.segment(image, NAMES) for model in (fast, plain))
        for one, other in zip(answer.classes, wanted.classes, strict=True):
            assert one.is_present == other.is_present
            assert one.probability == pytest.approx(other.probability, abs=1e-3)
            if one.mask is not None and other.mask is not None:
                assert (one.mask & other.mask).sum() >= 0.99 * (one.mask | other.mask).sum()
    assert fast.version == plain.version
    assert fast.encoder_fingerprint == plain.encoder_fingerprint


def test_several_photos_at_once(plain: Lasagna, folder: Path, photos: dict[str, Path]) -> None:
    """Each thread has a request of its own, and what one is given does not change under it."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        model = Lasagna.from_pretrained("nano", device="cpu", dtype="float32")
        use_openvino(model.model.encoder, folder)
        images = [load_image(photo) for photo in photos.values()]
        found = [values(photo.encoded) for photo in model.encode_images(images)]
        single = values(model.encode_image(images[0]).encoded)
        assert len(model.model.encoder.engine._compiled) == 1  # one photo is content with what there is
    finally:
        torch.set_num_threads(before)
    for tensors, image in zip([*found, single], [*images, images[0]], strict=True):
        for one, other in zip(tensors, values(plain.encode_image(image).encoded), strict=True):
            assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_an_emptied_cache_does_not_matter_to_a_loaded_model(plain: Lasagna, tmp_path: Path) -> None:
    encoder = copy.deepcopy(plain.model.encoder)
    use_openvino(encoder, tmp_path / "encoders")
    shutil.rmtree(tmp_path / "encoders")
    pixels = {"image": torch.zeros(1, 3, 64, 64)}
    with torch.inference_mode():
        assert torch.allclose(encoder(pixels).embedding, plain.model.encoder(pixels).embedding, rtol=1e-3, atol=1e-3)


def test_where_a_gradient_is_wanted_torch_computes(fast: Lasagna) -> None:
    pixels = torch.zeros(1, 3, 64, 64)
    found = fast.model.encoder({"image": pixels})
    assert found.embedding.requires_grad
    assert not fast.model.encoder.engine.runs(pixels)


def test_a_copy_and_a_pickle_compute_in_torch(fast: Lasagna) -> None:
    assert copy.deepcopy(fast.model.encoder).engine is None
    assert pickle.loads(pickle.dumps(fast)).model.encoder.engine is None
    assert fast.model.encoder.engine is not None


def _answer(model: Lasagna, to: Connection) -> None:
    with torch.inference_mode():
        to.send(
            (model.model.encoder.engine.runs(torch.zeros(1)), float(model.segment(GREY, ["sky"])["sky"].probability))
        )


GREY = np.full((64, 96, 3), 128, np.uint8)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_computes_in_torch(fast: Lasagna) -> None:
    mine = float(fast.segment(GREY, ["sky"])["sky"].probability)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_answer, args=(fast, theirs))
    child.start()
    try:
        assert ours.poll(60), "the forked process does not answer"
        runs, probability = ours.recv()
    finally:
        child.kill()
        child.join()
    assert not runs
    assert probability == pytest.approx(mine, abs=1e-3)


def test_the_traced_network_is_kept(fast: Lasagna, plain: Lasagna, folder: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*.bin")}
    assert len(files) == 1
    encoder = copy.deepcopy(plain.model.encoder)
    use_openvino(encoder, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.bin")} == files
    with torch.no_grad():
        encoder.embedding_out.weight[0, 0] += 1
    assert exported._fingerprint(encoder) != exported._fingerprint(plain.model.encoder)


def test_what_nobody_loads_for_a_month_goes(plain: Lasagna, tmp_path: Path) -> None:
    encoders = [copy.deepcopy(plain.model.encoder) for _ in range(3)]
    for number, encoder in enumerate(encoders):
        with torch.no_grad():
            encoder.embedding_out.bias += number
        if number == 2:
            for path in tmp_path.iterdir():
                os.utime(path, (0, 0))
            use_openvino(encoders[0], tmp_path)  # one of the two is loaded again
        use_openvino(encoder, tmp_path)
    kept = {exported._fingerprint(encoders[number]) for number in (0, 2)}
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == kept
    assert len(list(tmp_path.iterdir())) == 4


def test_a_fine_tune_has_an_engine_of_its_own(plain: Lasagna, folder: Path) -> None:
    encoder = copy.deepcopy(plain.model.encoder)
    with torch.no_grad():
        encoder.embedding_out.bias += 1
    use_openvino(encoder, folder)
    pixels = {"image": torch.zeros(1, 3, 64, 64)}
    with torch.inference_mode():
        assert torch.allclose(
            encoder(pixels).embedding, plain.model.encoder(pixels).embedding + 1, rtol=1e-3, atol=1e-3
        )


def test_by_the_name_of_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASAGNA_CACHE", str(tmp_path))
    Lasagna.random(0).save_pretrained(tmp_path / "tiny")
    model = Lasagna.from_pretrained(tmp_path / "tiny", device="cpu", encoder="openvino")
    assert isinstance(model.model.encoder.engine, OpenVinoEngine)
    assert list((tmp_path / "encoders").glob("*.xml"))
    with pytest.raises(ConfigError, match="torch or openvino, not 'onnx'"):
        Lasagna.from_pretrained(tmp_path / "tiny", encoder="onnx")


def test_what_it_cannot_run_is_said(plain: Lasagna, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="sees with SAM and CLIP"):
        use_openvino(torch.nn.Linear(2, 2), tmp_path)
    half = copy.deepcopy(plain.model.encoder).half()
    with pytest.raises(ConfigError, match="float32 or bfloat16, the model is on cpu in float16"):
        use_openvino(half, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install 'lasagna-assist\[openvino\]'"):
        use_openvino(copy.deepcopy(plain.model.encoder), tmp_path)


def test_bfloat16_is_near(plain: Lasagna, folder: Path) -> None:
    encoder = copy.deepcopy(plain.model.encoder).bfloat16()
    use_openvino(encoder, folder)
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = encoder({"image": pixels.bfloat16()})
        wanted = plain.model.encoder({"image": pixels})
    assert found.embedding.dtype == torch.bfloat16
    near = (found.embedding.float() - wanted.embedding).abs().mean() / wanted.embedding.abs().mean()
    assert near < 0.1
