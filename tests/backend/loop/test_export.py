"""`lasagna export`: what people corrected, in formats of others, read back by readers that know nothing of it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pycocotools.coco import COCO

from backend.commands.export import export
from backend.loop.export import VOID
from backend.queue.store import Project, Store
from backend.registry.label_histories import LabelHistories
from lasagna.errors import ConfigError, DataError
from lasagna.labels.configuration import parse_label_config
from lasagna.settings import Settings, registry_folder
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, StubLabelStudio, png
from tests.backend.loop.loop_helpers import correct
from training.data.sources import find_source

CLASSES = ("Cat", "Dog", "Sky")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that knows since when the labels stand in the configuration."""
    monkeypatch.setenv("LASAGNA_STATE_DIR", str(tmp_path / "state"))
    histories = LabelHistories(registry_folder(Settings.load()))
    histories.note(PROJECT, parse_label_config(CONFIG).images, datetime(2000, 1, 1, tzinfo=UTC))


def run(stub: StubLabelStudio, out: Path, *more: str) -> Result:
    return CliRunner().invoke(export, ["3", "--out", str(out), "--url", stub.url, "--token", TOKEN, *more])


def masks_of(source: Any) -> dict[str, np.ndarray]:
    """Photo -> where a cat is."""
    found = {}
    for record in (source[i] for i in range(len(source))):
        labels = record.read()
        place = record.classes.index("Cat")
        found[record.image_path.stem] = (labels == place).any(0)
    return found


def test_every_format_has_the_same_masks(stub: StubLabelStudio, tmp_path: Path) -> None:
    correct(stub, 3)
    out = tmp_path / "out"
    done = run(stub, out, "--format", "masks", "--format", "coco", "--format", "yolo")
    assert done.exit_code == 0, done.output
    assert "3 photos, 3 classes" in done.output
    assert sorted(path.name for path in (out / "images").iterdir()) == ["1.png", "2.png", "3.png"]
    masks = masks_of(find_source("mine", tmp_path, path=out).open("all"))
    assert sorted(masks) == ["1", "2", "3"]
    assert masks["1"].any()
    assert not masks["2"].any()
    coco = COCO(str(out / "coco.json"))
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image in coco.loadImgs(coco.getImgIds()):
        drawn = [coco.annToMask(each) for each in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))]
        united = np.any(drawn, 0) if drawn else np.zeros((image["height"], image["width"]), bool)
        assert np.array_equal(united, masks[Path(image["file_name"]).stem])
    lines = (out / "yolo" / "labels" / "1.txt").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("0 ")
    assert (out / "yolo" / "labels" / "2.txt").read_text() == ""
    assert (out / "yolo" / "images" / "1.png").samefile(out / "images" / "1.png")


def test_nothing_is_written_over_and_nothing_half(stub: StubLabelStudio, tmp_path: Path) -> None:
    correct(stub, 2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    done = run(stub, out)
    assert isinstance(done.exception, ConfigError)
    assert "is not empty" in str(done.exception)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    stub.images.clear()
    gone = run(stub, tmp_path / "other")
    assert isinstance(gone.exception, DataError)
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "state"}


def test_into_the_folder_that_one_is_in(stub: StubLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    correct(stub, 2)
    out, kept = tmp_path / "out", tmp_path / "out.part"
    out.mkdir()
    kept.mkdir()
    monkeypatch.chdir(out)
    assert run(stub, Path(".")).exit_code == 0
    assert len(list((out / "images").iterdir())) == 2
    assert kept.is_dir(), "a folder of the user's"


def test_what_cannot_be_used_is_named(stub: StubLabelStudio, tmp_path: Path) -> None:
    correct(stub, 3)
    stub.images["/data/upload/3/2.png"] = b"no photo"
    done = run(stub, tmp_path / "out", "--json")
    assert done.exit_code == 1
    assert "left out: task 2:" in done.stderr
    assert json.loads(done.stdout)["photos"] == 2


def test_names_are_those_of_the_photos(stub: StubLabelStudio, tmp_path: Path) -> None:
    addresses = ["/data/upload/3/0a1b2c3d-gr%C3%BCne%20K%C3%BCh.png", "/data/local-files/?d=a/b/x.png",
                 "/data/upload/3/0a1b2c3d-cow.PNG", "/data/upload/3/1a1b2c3d-cow.png"]  # fmt: skip
    for number, address in enumerate(addresses, start=1):
        [task] = stub.add_tasks(1, first=number)
        task["data"]["image"] = address
        stub.images[address] = png(number)
        stub.annotate(number, [])
    done = run(stub, tmp_path / "out")
    assert done.exit_code == 0, (done.output, done.exception)
    names = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert names == ["4-cow.png", "cow.png", "grüne Küh.png", "x.png"], done.output


def test_an_unlabelled_region_is_void(stub: StubLabelStudio, tmp_path: Path) -> None:
    [task] = correct(stub, 1)
    [annotation] = next(one for one in stub.tasks if one["id"] == task)["annotations"]
    [cat] = annotation["result"]
    value = {"x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0}
    annotation["result"].append({**cat, "id": "u", "value": value})
    done = run(stub, tmp_path / "out")
    assert done.exit_code == 0, (done.output, done.exception)
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "1.png"))
    assert set(np.unique(mask)) == {1, VOID}
    undecided = json.loads((tmp_path / "out" / "export.json").read_text())["undecided"]
    assert undecided == {"1.png": ["Dog", "Sky"]}
    assert "undecided classes in 1 photos" in done.output


def test_photos_under_the_name_that_label_studio_calls_itself(
    stub: StubLabelStudio, tmp_path: Path, store: Store, redis_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In containers that is another than ours for it; the backend that runs beside knows it."""
    correct(stub, 1)
    stub.tasks[0]["data"]["image"] = "http://label-studio:8080" + stub.tasks[0]["data"]["image"]
    store.keep_project(PROJECT, Project("http://label-studio:8080"))
    assert run(stub, tmp_path / "alone").exit_code != 0, "nobody says whose address that is"
    monkeypatch.setenv("LASAGNA_REDIS_URL", redis_db)
    done = run(stub, tmp_path / "out")
    assert done.exit_code == 0, (done.output, done.exception)
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["1.png"]


def test_a_renamed_label_is_what_it_is_called_now(stub: StubLabelStudio, tmp_path: Path) -> None:
    correct(stub, 2)
    stub.label_config = CONFIG.replace('value="Cat"', 'value="Feline"')
    histories = LabelHistories(registry_folder(Settings.load()))
    histories.note(PROJECT, parse_label_config(stub.label_config).images, datetime(2000, 1, 1, tzinfo=UTC))
    histories.rename(PROJECT, "Cat", "Feline")
    done = run(stub, tmp_path / "out")
    assert done.exit_code == 0, (done.output, done.exception)
    classes = json.loads((tmp_path / "out" / "masks" / "classes.json").read_text())
    assert "Cat" not in json.dumps(classes)
    assert np.asarray(Image.open(tmp_path / "out" / "masks" / "1.png")).any()
