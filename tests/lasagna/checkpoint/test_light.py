"""Light checkpoints over a network in memory."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from lasagna import Lasagna
from lasagna.checkpoint.folder import checkpoint_layers, checkpoint_version
from lasagna.checkpoint.light import can_share, load_over
from lasagna.checkpoint.weights import LayeredWeights, load_model
from lasagna.errors import CheckpointError
from lasagna.network.adapter import Adapter

ADAPTED, REPLACED, BUFFER = "layers.0.self_attn.q_proj.weight", "lm_head.weight", "running_mean"


def lay_over(base: Path, folder: Path, seed: int, adapted: bool = True) -> Path:
    """A checkpoint with an adapter of one weight, another weight and a statistic of its own."""
    folder.mkdir()
    for name in ("config.json", "prompt.json", "tokenizer.json", "calibration.json"):
        shutil.copy(base / name, folder / name)
    (folder / "base.json").write_text(json.dumps({"base": f"../{base.name}"}))
    generator = torch.Generator().manual_seed(seed)
    if adapted:
        a, b = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
        Adapter(4.0, {ADAPTED: (a, b)}).save(folder / "adapter")
    files = [path for path in (base, base.with_name("whole")) if list(path.glob("*.safetensors"))]
    whole = load_file(files[-1] / "model.safetensors")
    statistic = next(key for key in sorted(whole) if key.endswith(BUFFER))
    changed = {key: torch.randn(whole[key].shape, generator=generator) for key in (REPLACED, statistic)}
    save_file(changed, folder / "model.safetensors")
    return folder


@pytest.fixture
def whole(random_checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(random_checkpoint, tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers", [[True], [False], [True, True], [True, False]], ids=["one", "no adapter", "two", "two and one adapter"]
)
def test_the_same_bits_as_loaded_by_itself(whole: Path, tmp_path: Path, layers: list[bool]) -> None:
    folder = whole
    for number, adapted in enumerate(layers):
        folder = lay_over(folder, tmp_path / f"light-{number}", number, adapted)
    network = load_model(whole)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found, expected = load_over(folder, whole, network), load_model(folder)
    assert found.state_dict().keys() == expected.state_dict().keys()
    shared = 0
    for key, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
        assert torch.equal(network.state_dict()[key], before[key]), key
        shared += found.state_dict()[key].data_ptr() == network.state_dict()[key].data_ptr()
    assert shared == len(before) - (3 if any(layers) else 2)
    assert not found.training


def test_answers_through_a_loaded_base(whole: Path, tmp_path: Path, photos: dict[str, Path]) -> None:
    from lasagna.masks.image import load_image

    folder, image = lay_over(whole, tmp_path / "light", 0), load_image(photos["cat"])
    base = Lasagna.from_pretrained(whole, device="cpu")
    light = Lasagna.from_pretrained(folder, device="cpu", base=base)
    alone = Lasagna.from_pretrained(folder, device="cpu")
    names = ["cat", "sky", "road", "cup"]
    assert light.version == alone.version != base.version
    answers = [model.segment(image, names, threshold=0.01) for model in (light, alone)]
    assert [c.probability for c in answers[0].classes] == [c.probability for c in answers[1].classes]
    assert base.model.lm_head.weight.data_ptr() != light.model.lm_head.weight.data_ptr()


def test_what_is_not_laid_over_the_base_is_loaded_whole(whole: Path, tmp_path: Path) -> None:
    other = shutil.copytree(whole, tmp_path / "other")
    base = Lasagna.from_pretrained(whole, device="cpu")
    assert not can_share(other, whole, base.model)
    assert not can_share(whole, whole, base.model)
    assert not can_share(lay_over(whole, tmp_path / "light", 0), whole, load_model(whole, dtype=torch.bfloat16))
    loaded = Lasagna.from_pretrained(other, device="cpu", base=base)
    assert loaded.model.lm_head.weight.data_ptr() != base.model.lm_head.weight.data_ptr()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lm_head.weight": torch.zeros(2, 2)}, "lm_head.weight is"),
        ({"nothing.weight": torch.zeros(2)}, "unexpected nothing.weight"),
    ],
    ids=["shape", "name"],
)
def test_a_folder_that_does_not_fit(whole: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    folder = lay_over(whole, tmp_path / "light", 0)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_over(folder, whole, load_model(whole))


def test_weights_without_a_network(whole: Path, tmp_path: Path) -> None:
    folder = lay_over(lay_over(whole, tmp_path / "one", 0), tmp_path / "two", 1)
    expected = load_model(folder).state_dict()
    with contextlib.ExitStack() as stack:
        weights, base = LayeredWeights(checkpoint_layers(folder), stack), LayeredWeights([whole], stack)
        assert set(weights.shapes()) == set(expected)
        for key in weights.shapes():
            assert torch.equal(weights.get(key), expected[key].float()), key
        differs = {key for key in weights.shapes() if weights.origin(key) != base.origin(key)}
    statistic = next(key for key in sorted(expected) if key.endswith(BUFFER))
    assert differs == {statistic, f"language_model.{ADAPTED}", REPLACED}


@pytest.mark.parametrize("names", [["./"], ["../b", "../a"], ["../b", "../c", "../b"]], ids=["itself", "two", "later"])
def test_a_checkpoint_that_is_laid_over_itself_is_named(names: list[str], whole: Path, tmp_path: Path) -> None:
    for letter, base in zip("abc", names, strict=False):
        lay_over(whole, tmp_path / letter, 0)
        (tmp_path / letter / "base.json").write_text(json.dumps({"base": base}))
    for use in (checkpoint_version, checkpoint_layers, load_model):
        with pytest.raises(CheckpointError, match="laid over itself"):
            use(tmp_path / "a")


def test_a_base_is_never_downloaded(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def download(hub_id: str, *, local_files_only: bool = False, **_: object) -> str:
        asked.append(not local_files_only)
        raise LocalEntryNotFoundError(hub_id)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    folder = lay_over(whole, tmp_path / "light", 0)
    (folder / "base.json").write_text('{"base": "somebody/enormous"}')
    with pytest.raises(CheckpointError, match="lasagna models pull somebody/enormous"):
        checkpoint_version(folder)
    assert asked == [False]
