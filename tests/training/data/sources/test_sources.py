"""The registry: every source on a tiny sample in its published format, whole and incomplete."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lasagna.errors import ConfigError, DataError, LasagnaError
from tests.training.data.sources import samples
from tests.training.data.sources.samples import SAMPLES, SIZE
from training.data.records import OTHER, UNKNOWN
from training.data.sources import SOURCES, ReaderEntry, open_source

ONE_TARGET = np.array([[0] * 4 + [OTHER] * 4] * SIZE[0])


def halves(left: int, right: int, bottom: int | None = None) -> np.ndarray:
    labels = np.array([[left] * 4 + [right] * 4] * SIZE[0])
    if bottom is not None:
        labels[-1] = bottom
    return labels


# Source -> (number of its classes, the classes at the indices of the label map, the label map's layers).
EXPECTED = {
    "ade20k": (150, {0: "wall", 149: "flag"}, [halves(0, 149, UNKNOWN)]),
    "cocostuff": (171, {0: "person", 170: "wood"}, [halves(0, 170, UNKNOWN)]),
    "cocostuff_pixelmaps": (91, {0: "banner"}, [halves(0, OTHER, UNKNOWN)]),
    "cityscapes": (19, {0: "road", 18: "bicycle"}, [halves(0, 18, UNKNOWN)]),
    "mapillary": (3, {1: "traffic light", 2: "sky"}, [halves(1, 2, UNKNOWN)]),
    "mapillary_v1.2": (3, {1: "traffic light", 2: "sky"}, [halves(1, 2, UNKNOWN)]),
    "pascal_context_59": (59, {17: "sofa"}, [halves(17, OTHER, UNKNOWN)]),
    "pascal_context_459": (459, {367: "sofa", 458: "wool"}, [halves(367, 458, UNKNOWN)]),
    "pascal_voc_20": (20, {10: "dining table"}, [halves(OTHER, 10, UNKNOWN)]),
    "coco_panoptic": (3, {0: "person", 2: "wall"}, [halves(0, 2, UNKNOWN)]),
    "folder": (2, {1: "dog"}, [halves(OTHER, 1, UNKNOWN)]),
    "coco": (2, {0: "dog", 1: "cat"}, [halves(1, OTHER)]),
    "label_studio": (2, {0: "Cat"}, [halves(0, OTHER)]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_opens_its_sample(tmp_path: Path, name: str) -> None:
    SAMPLES[name](tmp_path)
    source = open_source(name, tmp_path, "train")
    assert len(source) == 1
    record = source[0]
    assert record.source == (tmp_path.name if name == "folder" else name)
    assert record.image_path is not None
    assert record.image_path.is_file()
    assert sum(map(bool, (record.classes, record.texts, record.turns))) == 1
    assert bool(source.classes) == bool(record.classes)
    if record.turns:
        assert record.labels is None
        return
    labels = record.read()
    assert labels.dtype == np.int16
    assert labels.shape[1:] == SIZE
    assert record.size in (None, SIZE)
    if record.texts:
        np.testing.assert_array_equal(labels, ONE_TARGET[None])
    elif name in EXPECTED:
        count, names, layers = EXPECTED[name]
        assert (len(source.classes), record.classes) == (count, source.classes)
        assert {i: source.classes[i] for i in names} == names
        np.testing.assert_array_equal(labels, layers)


@pytest.mark.parametrize("name", SOURCES)
def test_class_names_are_words_that_differ(tmp_path: Path, name: str) -> None:
    SAMPLES[name](tmp_path)
    classes = open_source(name, tmp_path, "train").classes
    assert len(set(classes)) == len(classes)
    assert all(text == text.strip() and text for text in classes)


def files_of(name: str, root: Path) -> Iterator[Path]:
    """What a reader of the sample needs: every file but those that are optional or of another annotation."""
    optional = re.compile(r"imagelabels|instanceIds|_color|_polygons|^labels\.json")
    yield from (path for path in sorted(root.rglob("*")) if path.is_file() and not optional.search(path.name))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_a_missing_file_is_reported(tmp_path: Path, name: str) -> None:
    SAMPLES[name](tmp_path)
    needed = list(files_of(name, tmp_path))
    if "refclef" in name:  # the sample has the photos of all sets of this format
        needed = [path for path in needed if "mscoco" not in path.parts]
    elif "ref" in name:
        needed = [path for path in needed if "saiapr_tc-12" not in path.parts]
    assert len(needed) >= 2
    for path in needed:
        moved = path.rename(tmp_path / "elsewhere")
        with pytest.raises(LasagnaError) as error:
            open_source(name, tmp_path, "train")
        assert str(tmp_path) in str(error.value)
        assert path.name in str(error.value) or str(path.parent) in str(error.value) or path.stem in str(error.value)
        moved.rename(path)
    assert len(open_source(name, tmp_path, "train")) == 1


@pytest.mark.parametrize("name", SOURCES)
def test_an_empty_folder_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        open_source(name, tmp_path, "train")


@pytest.mark.parametrize("name", SOURCES)
def test_an_unknown_split_names_those_there_are(tmp_path: Path, name: str) -> None:
    SAMPLES[name](tmp_path)
    with pytest.raises(DataError, match=r"(no split|no export) .*holdout.*(is|are|there).* train"):
        open_source(name, tmp_path, "holdout")


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown data set 'ade'; known are ade20k, cityscapes"):
        open_source("ade", tmp_path, "train")


def test_the_documentation_lists_every_source() -> None:
    text = (Path(__file__).parents[4] / "docs" / "data.md").read_text()
    table = {cell for row in re.findall(r"^\| (.*?) \|", text, re.MULTILINE) for cell in re.findall(r"`([^`]+)`", row)}
    assert set(SOURCES) <= table


def test_the_documented_reader_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[4] / "docs" / "extend.md").read_text()
    section = text.split("## A data set\n")[1].split("\n## ")[0]
    module, entry = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (tmp_path / "pets.py").write_text(module)
    spec = importlib.util.spec_from_file_location("training.data.sources.pets", tmp_path / "pets.py")
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules[spec.name])
    for name, value in eval(f"{{{entry}}}", {"ReaderEntry": ReaderEntry}).items():
        monkeypatch.setitem(SOURCES, name, value)

    samples.photo(tmp_path / "pets" / "images" / "Abyssinian_1.jpg")
    samples.grey(tmp_path / "pets" / "annotations" / "trimaps" / "Abyssinian_1.png", samples.ids(1, 2, 3))
    (tmp_path / "pets" / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\n")
    source = open_source("pets", tmp_path, "train")
    assert (source.classes, source[0].source) == (("pet",), "pets")
    np.testing.assert_array_equal(source[0].read(), halves(0, OTHER, UNKNOWN)[None])


def test_names_are_installed_with_the_package() -> None:
    names = Path(__file__).parents[4] / "training" / "data" / "sources" / "names"
    assert '"data/sources/names/*.txt"' in (names.parents[3] / "pyproject.toml").read_text()
    assert {path.suffix for path in names.iterdir()} == {".txt"}
