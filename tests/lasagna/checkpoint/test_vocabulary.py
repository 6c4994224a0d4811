"""What a checkpoint was taught: matching, the file, and layers that lie over each other."""

import json
import shutil
from pathlib import Path

import pytest

from lasagna import ClassQuery, Lasagna
from lasagna.checkpoint.folder import checkpoint_version
from lasagna.checkpoint.vocabulary import VOCABULARY, Taught, Vocabulary, load_vocabulary, write_vocabulary
from lasagna.errors import CheckpointError

KNOWN = Vocabulary(
    {
        "car": Taught(812, 0.81),
        "t-shirt": Taught(40),
        "shoes": Taught(9),
        "traffic light": Taught(3),
        "Berry": Taught(2),
        "couch": Taught(30),
    },
    {"automobile": "car", "sofa": "couch"},
)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("car", "car"),
        ("Car", "car"),
        ("CARS", "car"),
        ("  car ", "car"),
        ("automobile", "car"),
        ("Automobiles", "car"),
        ("sofa", "couch"),
        ("T_shirt", "t-shirt"),
        ("T Shirts", "t-shirt"),
        ("shoe", "shoes"),
        ("traffic-light", "traffic light"),
        ("traffic_lights", "traffic light"),
        ("berries", "Berry"),
        ("kitchen", None),
        ("carpet", None),
        ("car seat", None),
        ("", None),
        ("日本", None),
        ("<SEG>", None),
        ("x" * 300, None),
    ],
)
def test_what_a_label_is_read_as(text: str, read: str | None) -> None:
    assert KNOWN.reading(text) == read


def test_a_name_that_was_taught_is_read_as_it_is() -> None:
    both = Vocabulary({"aeroplane": Taught(3), "airplane": Taught(9), "Airplane": Taught(1)}, {"plane": "airplane"})
    assert [both.reading(name) for name in ("aeroplane", "airplane", "Airplane", "AIRPLANE", "planes")] == [
        "aeroplane",
        "airplane",
        "Airplane",
        "airplane",
        "airplane",
    ]


def test_what_a_label_is_read_as_decides() -> None:
    asked = [ClassQuery("Auto", "car"), ClassQuery("car", "a thing with wheels"), ClassQuery("car"), ClassQuery("Auto")]
    assert KNOWN.unknown(asked) == ["car", "Auto"]


def test_merging_keeps_the_larger_count_and_the_newer_measure() -> None:
    later = Vocabulary({"car": Taught(20), "shoes": Taught(11, 0.5), "pod": Taught(4)}, {"capsule": "pod"})
    both = KNOWN.merged(later)
    assert both.names["car"] == Taught(812, 0.81)
    assert both.names["shoes"] == Taught(11, 0.5)
    assert both.names["pod"] == Taught(4)
    assert both.reading("capsules") == "pod"
    assert both.reading("sofas") == "couch"


def test_measures_go_to_names_that_it_has() -> None:
    found = KNOWN.measured({"car": 0.91237, "kitchen": 0.5, "shoes": None})
    assert found.names["car"] == Taught(812, 0.9124)
    assert "kitchen" not in found.names
    assert found.names["shoes"] == Taught(9)


def copy(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    return folder


def test_the_file_is_read_as_it_was_written(random_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy(random_checkpoint, tmp_path / "model")
    assert load_vocabulary(folder) is None
    before = checkpoint_version(folder)
    odd = KNOWN.merged(Vocabulary({'quote " \\ 日本\n': Taught(1)}))
    write_vocabulary(folder, odd)
    assert load_vocabulary(folder) == odd
    assert checkpoint_version(folder) != before, "what a model may be asked is a part of its answers"
    model = Lasagna.from_pretrained(folder)
    assert model.vocabulary == odd
    model.save_pretrained(tmp_path / "again")
    assert load_vocabulary(tmp_path / "again") == odd
    write_vocabulary(folder, None)
    assert checkpoint_version(folder) == before


def test_an_empty_vocabulary_knows_nothing(random_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy(random_checkpoint, tmp_path / "model")
    write_vocabulary(folder, Vocabulary({}))
    assert load_vocabulary(folder) == Vocabulary({})


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"names": ["car"]}',
        '{"names": {"car": 3}}',
        '{"names": {"car": {"photos": -1}}}',
        '{"names": {"car": {"photos": 1, "average_precision": 2}}}',
        '{"names": {"car": {"photos": 1}}, "synonyms": {"auto": "cars"}}',
        '{"synonyms": {}}',
    ],
)
def test_another_file_of_that_name_is_refused(random_checkpoint: Path, tmp_path: Path, text: str) -> None:
    folder = copy(random_checkpoint, tmp_path / "model")
    (folder / VOCABULARY).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vocabulary\.json: not a vocabulary"):
        load_vocabulary(folder)


@pytest.mark.parametrize(
    ("base", "own", "known"),
    [
        (["car"], ["pod"], ["car", "pod"]),
        (["car"], None, ["car"]),
        (None, ["pod"], None),
        (None, None, None),
    ],
)
def test_a_light_checkpoint_knows_what_it_lies_over(
    random_checkpoint: Path, tmp_path: Path, base: list[str] | None, own: list[str] | None, known: list[str] | None
) -> None:
    below, light = copy(random_checkpoint, tmp_path / "below"), copy(random_checkpoint, tmp_path / "light")
    (light / "base.json").write_text(json.dumps({"base": "../below"}))
    for folder, names in ((below, base), (light, own)):
        if names is not None:
            write_vocabulary(folder, Vocabulary({name: Taught(1) for name in names}))
    found = load_vocabulary(light)
    assert (None if found is None else sorted(found.names)) == known
