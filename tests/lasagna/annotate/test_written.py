"""`lasagna annotate`: which images it takes, and what it writes about them."""

import contextlib
import io
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image
from pycocotools.coco import COCO

from lasagna.formats.hygiene import Hygiene
from lasagna.labels.configuration import read_label_config
from lasagna.labels.question import ProjectQuestion, name_version
from lasagna.settings import Settings

from .made import CLASSES, NAMES, Run, picture, read


@pytest.fixture
def done(run: Run, folder: Path, tmp_path: Path) -> Path:
    result = run(folder, "--format", "label-studio,coco,masks,voc,yolo")
    assert result.exit_code == 0, result.output
    return tmp_path / "out"


def test_report(done: Path) -> None:
    report = read(done / "report.json")
    assert [image["path"] for image in report["images"]] == NAMES
    assert report["model_version"].startswith("tiny-")
    assert report["failures"] == []
    for image in report["images"]:
        assert (image["width"], image["height"]) == (48, 32)
        assert image["seconds"] > 0
        assert [row["name"] for row in image["classes"]] == CLASSES
        assert all(row["present"] or row["area"] == 0 for row in image["classes"])
        assert all(0 <= row["probability"] <= 1 for row in image["classes"])
    answers = [row["present"] for image in report["images"] for row in image["classes"]]
    assert any(answers), "a random model that finds nothing proves nothing"
    assert not all(answers)


def test_label_studio_tasks_are_ready_to_import(done: Path, tmp_path: Path) -> None:
    tasks = read(done / "tasks.json")
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=photos/a.jpg",
        "/data/local-files/?d=photos/b.png",
        "/data/local-files/?d=photos/north/x.jpg",
        "/data/local-files/?d=photos/south/copy%20of%20b.png",
        "/data/local-files/?d=photos/south/x.jpg",
        "/data/local-files/?d=photos/south/%C3%A4%20%26%231.png",
    ]
    interface = LabelInterface((done / "label_config.xml").read_text())
    report = read(done / "report.json")
    images = read_label_config(done / "label_config.xml").images
    question = ProjectQuestion.of(images, {}, asdict(Hygiene.of(Settings.load({}))))
    ids = []
    for task, image in zip(tasks, report["images"], strict=True):
        (prediction,) = task["predictions"]
        assert interface.validate_prediction(prediction, return_errors=True) == []
        assert prediction["model_version"] == name_version(report["model_version"], question), "as a backend calls it"
        ids += [region["id"] for region in prediction["result"]]
        drawn = {r["value"]["brushlabels"][0] for r in prediction["result"] if r["type"] == "brushlabels"}
        assert drawn == {row["name"] for row in image["classes"] if row["area"]}
        (absent,) = (r["value"]["choices"] for r in prediction["result"] if r["type"] == "choices")
        assert absent == [row["name"] for row in image["classes"] if not row["present"]]
    assert len(set(ids)) == len(ids)
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={tmp_path}" in (done / "IMPORT.md").read_text()


def test_coco_and_masks_agree_with_the_report(done: Path) -> None:
    report = read(done / "report.json")
    names = [row["name"] for row in read(done / "masks" / "classes.json")]
    assert names == [None, *CLASSES]
    for file in ("coco.json", "coco_polygons.json"):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(done / file))
        assert [image["file_name"] for image in coco.dataset["images"]] == NAMES
        for image, row in zip(coco.dataset["images"], report["images"], strict=True):
            areas: Counter[str] = Counter()
            for one in coco.imgToAnns[image["id"]]:  # several of a class whose objects are told apart
                areas[names[one["category_id"]]] += one["area"]
            assert areas == {c["name"]: c["area"] for c in row["classes"] if c["area"]}
    masks = sorted(str(path.relative_to(done / "masks")) for path in (done / "masks").rglob("*.png"))
    assert masks == ["a.png", "b.png", "north/x.png", "south/copy of b.png", "south/x.png", "south/ä &#1.png"]
    with Image.open(done / "masks" / "north" / "x.png") as png:
        shown = {names[i] for i in np.unique(np.asarray(png)) if i}
    assert shown <= {c["name"] for c in report["images"][2]["classes"] if c["present"]}


def test_yolo_folder_is_complete(done: Path) -> None:
    listed = (done / "yolo" / "images.txt").read_text().split("\n")[:-1]
    assert listed == [f"./images/{name}" for name in NAMES]
    for line in listed:
        image = done / "yolo" / line
        assert image.exists()
        assert Path(str(image.with_suffix(".txt")).replace("/images/", "/labels/")).exists()


def test_gallery_links_what_is_there(done: Path) -> None:
    from urllib.parse import unquote

    page = (done / "gallery.html").read_text(encoding="utf-8")
    sources = [part.split('"')[0] for part in page.split('src="')[1:]]
    links = [part.split('"')[0] for part in page.split('<a href="')[1:]]
    assert len(sources) == len(links) == len(NAMES)
    assert all((done / unquote(link)).is_file() for link in sources + links)
    assert page.count('loading="lazy"') == len(NAMES)


def test_files_patterns_and_folders_give_each_image_once(run: Run, folder: Path, tmp_path: Path) -> None:
    run(folder / "a.jpg", folder / "north" / ".." / "a.jpg", f"{folder}/**/*.png", folder / "north")
    report = read(tmp_path / "out" / "report.json")
    expected = ["a.jpg", "b.png", "north/x.jpg", "south/copy of b.png", "south/ä &#1.png"]
    assert [image["path"] for image in report["images"]] == expected


def test_hidden_files_and_other_files_are_passed_over(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / ".thumbs").mkdir()
    picture(9).save(folder / ".thumbs" / "t.jpg")
    picture(9).save(folder / "._a.jpg")
    (folder / "notes.txt").write_text("no image")
    assert run(folder).exit_code == 0
    assert [image["path"] for image in read(tmp_path / "out" / "report.json")["images"]] == NAMES


def test_output_among_the_images_is_not_annotated(run: Run, folder: Path) -> None:
    for _ in range(2):
        assert run(folder, out=folder).exit_code == 0
        assert [image["path"] for image in read(folder / "report.json")["images"]] == NAMES


def test_same_stem_in_the_same_folder(run: Run, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, name in enumerate(["x.jpg", "x.png", "X.bmp", "y.png"]):
        picture(i).save(photos / name)
    run(photos, "--format", "masks")
    found = sorted(path.name for path in (tmp_path / "out" / "masks").glob("*.png"))
    assert found == ["X.bmp.png", "x.jpg.png", "x.png.png", "y.png"]
    refused = run(photos, "--format", "yolo")
    assert refused.exit_code == 2
    assert "shares that name" in refused.output
