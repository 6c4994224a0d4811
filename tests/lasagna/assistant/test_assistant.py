"""`Lasagna`: what a caller relies on, and checkpoints that cannot be loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lasagna import ClassQuery, Lasagna
from lasagna.checkpoint.folder import checkpoint_version
from lasagna.errors import CheckpointError, ConfigError, ImageError, QueryError
from lasagna.network.config import DecoderConfig, ModelConfig, VisionConfig
from lasagna.network.model import LasagnaModel


@pytest.fixture(scope="module")
def model() -> Lasagna:
    return Lasagna.random(seed=1)


def photo(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


LABELS = ["sky", "a, b", "<SEG>", 'quote " quote', "日本", "x" * 300, "sky", "Sky", "...", "cat"]


def test_every_class_is_answered_as_itself_in_order(model: Lasagna) -> None:
    answer = model.segment(photo(), LABELS)
    assert [a.name for a in answer.classes] == LABELS
    assert answer.size == (60, 90)
    assert all(0 <= a.probability <= 1 for a in answer.classes)
    assert {a.mask.shape for a in answer.present} <= {(60, 90)}
    assert answer.classes[0].probability == answer.classes[6].probability


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 500])
def test_list_lengths(model: Lasagna, count: int) -> None:
    answer = model.segment(photo(), [f"c{i}" for i in range(count)])
    assert len(answer.classes) == count


def test_present_and_absent_follow_the_probability(model: Lasagna) -> None:
    answer = model.segment(photo(), [f"thing {i}" for i in range(40)])
    assert answer.present
    assert answer.absent
    assert min(a.probability for a in answer.present) >= 0.5 > max(a.probability for a in answer.absent)


def test_the_threshold_moves_decisions(model: Lasagna) -> None:
    labels = [f"thing {i}" for i in range(40)]
    counts = [len(model.segment(photo(), labels, threshold=t).present) for t in (0.05, 0.5, 0.95)]
    assert counts[0] > counts[1] > counts[2]
    high = model.segment(photo(), labels, threshold=0.6)
    assert all((a.probability >= 0.6) == a.is_present for a in high.classes)


def test_an_alias_is_read_and_the_name_comes_back(model: Lasagna) -> None:
    plain = model.segment(photo(), ["dog"])
    alias = model.segment(photo(), [ClassQuery("Hund", reads_as="dog")])
    assert alias.classes[0].name == "Hund"
    assert alias.classes[0].probability == plain.classes[0].probability


def test_batch_equals_one_by_one(model: Lasagna) -> None:
    images = [photo(60, 90, 1), photo(90, 60, 2), photo(64, 64, 3), photo(30, 45, 4)]
    lists = [["sky"], ["road", "cat", "dog"], [f"thing {i}" for i in range(30)], ["sky", "tree"]]
    together = model.segment_batch(images, lists)
    for image, labels, batched in zip(images, lists, together, strict=True):
        alone = model.segment(image, labels)
        for a, b in zip(alone.classes, batched.classes, strict=True):
            assert a.probability == pytest.approx(b.probability, abs=1e-5)
            assert a.is_present == b.is_present
            if a.mask is not None and b.mask is not None:
                assert (a.mask != b.mask).mean() < 1e-3


def test_exclusive_masks_do_not_overlap(model: Lasagna) -> None:
    labels = [f"thing {i}" for i in range(40)]
    free = np.sum([a.mask for a in model.segment(photo(), labels).present], axis=0)
    exclusive = np.sum([a.mask for a in model.segment(photo(), labels, exclusive=True).present], axis=0)
    assert free.max() > 1
    assert exclusive.max() == 1
    assert ((free > 0) == (exclusive > 0)).all()


def test_a_pil_image_is_the_array(model: Lasagna) -> None:
    image = photo()
    a, b = model.segment(image, ["sky"]), model.segment(Image.fromarray(image), ["sky"])
    assert a.classes[0].probability == b.classes[0].probability


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (33, 31)])
def test_odd_sizes(model: Lasagna, size: tuple[int, int]) -> None:
    answer = model.segment(photo(*size), ["sky", "road"], threshold=0.01)
    assert all(a.mask.shape == size for a in answer.present)
    assert answer.present


@pytest.mark.parametrize(
    ("labels", "message"), [([], "empty"), (["sky", " "], "class 2 of 2 is blank"), ([""], "blank")]
)
def test_lists_that_cannot_be_asked(model: Lasagna, labels: list[str], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        model.segment(photo(), labels)


def test_a_class_has_a_threshold_of_its_own(model: Lasagna) -> None:
    low, high = 1e-9, 1 - 1e-9
    asked = [ClassQuery("sky", threshold=high), "road", ClassQuery("tree", threshold=low)]
    assert [a.name for a in model.segment(photo(), asked, threshold=low).present] == ["road", "tree"]
    assert [a.name for a in model.segment(photo(), asked, threshold=high).present] == ["tree"]
    assert [a.name for a in model.segment(photo(), asked, threshold=low, chunk_size=1).present] == ["road", "tree"]
    plain = model.segment(photo(), ["sky", "road", "tree"], threshold=low)
    assert model.segment(photo(), [ClassQuery("sky", threshold=low)])["sky"].probability == pytest.approx(
        model.segment(photo(), ["sky"])["sky"].probability
    )
    assert [a.name for a in plain.present] == ["sky", "road", "tree"]
    # of two that the model reads alike the lowest counts
    twins = [ClassQuery("a", "sky", high), ClassQuery("b", "sky", low)]
    assert [a.name for a in model.segment(photo(), twins).present] == ["a", "b"]
    with pytest.raises(QueryError, match="threshold of 'sky' is between 0 and 1"):
        model.segment(photo(), [ClassQuery("sky", threshold=1.0)])


def test_other_misuse_is_refused(model: Lasagna) -> None:
    with pytest.raises(QueryError, match="as many class lists"):
        model.segment_batch([photo()], [])
    with pytest.raises(QueryError, match="between 0 and 1"):
        model.segment(photo(), ["sky"], threshold=1.5)
    with pytest.raises(ImageError, match="uint8"):
        model.segment(np.zeros((4, 4), np.uint8), ["sky"])
    with pytest.raises(QueryError, match="a point or a box"):
        model.segment_prompt(model.encode_image(photo()))
    assert model.segment_batch([], []) == []


def test_clicks_give_masks_of_the_image(model: Lasagna) -> None:
    features = model.encode_image(photo())
    mask, score = model.segment_prompt(features, points=[(45, 30, True), (2, 2, False)])
    boxed, _ = model.segment_prompt(features, box=(10, 10, 50, 40))
    swapped, _ = model.segment_prompt(features, box=(50, 40, 10, 10))
    assert mask.shape == boxed.shape == (60, 90)
    assert mask.dtype == np.bool_
    assert 0 <= score <= 1
    assert (boxed == swapped).all()
    other, _ = model.segment_prompt(features, points=[(5, 55, True)])
    assert (other != mask).any()


@pytest.fixture
def folder(model: Lasagna, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_round_trip(model: Lasagna, folder: Path) -> None:
    again = Lasagna.from_pretrained(folder)
    a, b = model.segment(photo(), LABELS), again.segment(photo(), LABELS)
    assert [x.probability for x in a.classes] == [x.probability for x in b.classes]
    assert again.version == checkpoint_version(folder)
    assert again.version.startswith("tiny-")


def test_devices_and_types_that_cannot_be_had(folder: Path) -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        Lasagna.from_pretrained(folder, device="gpu")
    with pytest.raises(ConfigError, match="unknown dtype"):
        Lasagna.from_pretrained(folder, dtype="int3")


def test_the_version_is_the_content(folder: Path) -> None:
    before = checkpoint_version(folder)
    (folder / "README.md").write_text("a card")
    assert checkpoint_version(folder) == before
    (folder / "calibration.json").write_text(json.dumps({"temperature": 2.0}))
    assert checkpoint_version(folder) != before


def test_half_precision_storage_changes_little(model: Lasagna, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "half", half=True)
    again = Lasagna.from_pretrained(tmp_path / "half")
    for a, b in zip(model.segment(photo(), LABELS).classes, again.segment(photo(), LABELS).classes, strict=True):
        assert a.probability == pytest.approx(b.probability, abs=0.02)


def change_weights(folder: Path, change: str) -> None:
    weights = load_file(folder / "model.safetensors")
    if change == "missing":
        del weights["lm_head.weight"]
    elif change == "unexpected":
        weights["extra.weight"] = torch.zeros(1)
    else:
        weights["lm_head.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "missing lm_head.weight"),
        ("unexpected", "unexpected extra.weight"),
        ("shape", r"lm_head.weight is \(3, 3\)"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change: str, message: str) -> None:
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        Lasagna.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "{", "not readable as JSON"),
        ("config.json", '{"text": {}}', "does not describe"),
        ("prompt.json", "[]", "not a prompt format"),
        ("tokenizer.json", "{}", "not a tokenizer.json"),
        ("calibration.json", '{"temperature": 0}', "positive"),
        ("model.safetensors", "junk", "not readable as safetensors"),
    ],
)
def test_files_that_cannot_be_read(folder: Path, file: str, text: str, message: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Lasagna.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "message"), [("nanno", "neither a shipped one"), ("/nowhere/at/all", "neither"), (__file__, "is a file")]
)
def test_unknown_checkpoints(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Lasagna.from_pretrained(name)


def test_an_incomplete_folder_names_what_is_missing(folder: Path) -> None:
    (folder / "prompt.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no prompt\.json"):
        Lasagna.from_pretrained(folder)


def test_the_pair_of_the_paper_is_the_same_class(tmp_path: Path) -> None:
    """CLIP + SAM's vision transformer, padding included, at a tiny size: same class, same calls."""
    tiny = Lasagna.random()
    config = ModelConfig(
        text=tiny.model.config.text,
        vision=VisionConfig(
            kind="clip-sam",
            image_size=64,
            clip={
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
                "projection_dim": 16,
            },
            sam={"embed_dim": 16, "depth": 2, "num_heads": 2, "global_attn_indexes": [1]},
        ),
        decoder=DecoderConfig(width=32, heads=2, mlp_dim=32),
    )
    torch.manual_seed(0)
    network = LasagnaModel(config)
    model = Lasagna(network, tiny.tokenizer, tiny.format, tiny.calibration, "pair")
    model.save_pretrained(tmp_path / "pair")
    again = Lasagna.from_pretrained(tmp_path / "pair")
    answer = again.segment(photo(40, 90), [f"thing {i}" for i in range(9)], threshold=0.01)
    assert len(answer.classes) == 9
    assert all(a.mask.shape == (40, 90) for a in answer.present)
    mask, _ = again.segment_prompt(again.encode_image(photo(40, 90)), points=[(80, 30, True)])
    assert mask.shape == (40, 90)
