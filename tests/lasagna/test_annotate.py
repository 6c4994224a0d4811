"""`lasagna annotate` as a user runs it, with a small random model: what is written, computed again, or fails."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image
from pycocotools.coco import COCO

from lasagna.cli import main

CLASSES = ["sky", "road", "cat", "tree", "person", "car", "dog", "cup"]

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, as a checkpoint folder. With this seed it finds some classes and not others."""
    from lasagna import Lasagna

    folder = tmp_path_factory.mktemp("models") / "tiny"
    Lasagna.random(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Run:
    """Runs the command; the output goes to `out` below the test's folder unless --out says otherwise."""

    def invoke(*arguments: str | Path, out: Path = tmp_path / "out", labels: str | None = ",".join(CLASSES)) -> Result:
        words = ["annotate", *map(str, arguments), "--out", str(out), "--model", str(model), "--device", "cpu"]
        if labels is not None:
            words += ["--labels", labels]
        result = CliRunner().invoke(main, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def picture(seed: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A smooth random photo of that (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six photos, two of them with the same stem in different folders and two with the same content."""
    photos = tmp_path / "photos"
    (photos / "north").mkdir(parents=True)
    (photos / "south").mkdir()
    for i, name in enumerate(["a.jpg", "b.png", "north/x.jpg", "south/x.jpg", "south/ä &#1.png"]):
        picture(i).save(photos / name, quality=95)
    shutil.copy(photos / "b.png", photos / "south" / "copy of b.png")
    return photos


NAMES = ["a.jpg", "b.png", "north/x.jpg", "south/copy of b.png", "south/x.jpg", "south/ä &#1.png"]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- What is written --------------------------------------------------------------------------------------------------


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
    ids = []
    for task, image in zip(tasks, report["images"], strict=True):
        (prediction,) = task["predictions"]
        assert interface.validate_prediction(prediction, return_errors=True) == []
        assert prediction["model_version"] == report["model_version"]
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
            areas = {names[a["category_id"]]: a["area"] for a in coco.imgToAnns[image["id"]]}
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


# --- Which images -----------------------------------------------------------------------------------------------------


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


# --- Again ------------------------------------------------------------------------------------------------------------


def computed(result: Result) -> int:
    """How many images the run computed, from its last words."""
    return int(result.stdout.split(" now,")[0].rsplit("(", 1)[1])


def test_same_content_is_computed_once(run: Run, folder: Path) -> None:
    assert computed(run(folder)) == len(NAMES) - 1


def test_a_second_run_computes_nothing_and_loads_no_model(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("tasks.json", "coco.json", "gallery.html")}

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("lasagna.assistant.Lasagna.from_pretrained", load)
    again = run(folder, "--batch-size", "2")
    assert (again.exit_code, computed(again)) == (0, 0)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


def test_changed_options_are_noticed_and_computed(run: Run, folder: Path, tmp_path: Path) -> None:
    run(folder)
    changed = run(folder, "--threshold", "0.001")
    assert "other threshold" in " ".join(changed.stderr.split())
    assert computed(changed) == len(NAMES) - 1
    assert all(row["present"] for image in read(tmp_path / "out" / "report.json")["images"] for row in image["classes"])
    back = run(folder)
    assert computed(back) == 0, "the results of the first options were kept"


def test_a_new_and_a_removed_image(run: Run, folder: Path, tmp_path: Path) -> None:
    run(folder)
    (folder / "north" / "x.jpg").unlink()
    picture(20).save(folder / "new.png")
    (tmp_path / "out" / "masks" / "mine.txt").write_text("not written by us")
    again = run(folder)
    assert computed(again) == 1
    expected = ["a.jpg", "b.png", "new.png", *NAMES[3:]]
    assert [image["path"] for image in read(tmp_path / "out" / "report.json")["images"]] == expected
    assert not (tmp_path / "out" / "masks" / "north" / "x.png").exists()
    assert (tmp_path / "out" / "masks" / "mine.txt").exists()
    assert len(list((tmp_path / "out" / "gallery").glob("*.jpg"))) == len(expected) - 1


def test_a_damaged_result_is_computed_again(run: Run, folder: Path, tmp_path: Path) -> None:
    run(folder)
    results = sorted((tmp_path / "out" / ".results").glob("*/*.json"))
    results[0].write_bytes(results[0].read_bytes()[:50])
    assert computed(run(folder)) == 1


@pytest.fixture
def many(tmp_path: Path) -> Path:
    photos = tmp_path / "many"
    photos.mkdir()
    for i in range(40):
        picture(i).save(photos / f"{i:02}.png")
    return photos


@contextlib.contextmanager
def started(photos: Path, out: Path, model: Path, least: int) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, at least `least` of whose results are there."""
    words = [str(photos), "--labels", ",".join(CLASSES), "--out", str(out), "--model", str(model), "--batch-size", "1"]
    # A pause per image, so that the signal meets the run in its middle on any machine.
    slow = (
        "import time; from lasagna.batch import Annotator as A; answer = A._answer\n"
        "A._answer = lambda *a: (time.sleep(0.2), answer(*a))[1]\n"
        "from lasagna.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "annotate", *words, "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 300
        while len(list((out / ".results").glob("*/*.json"))) < least:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no results within five minutes"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_killed_in_the_middle_and_run_again(run: Run, many: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(many, out, model, least=5) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (out / ".results").glob("*/*.json")}
    assert 5 <= len(kept) < 40
    assert all(read(path)["classes"] for path in kept), "a result is complete or not there"
    assert not (out / "tasks.json").exists()

    again = run(many)
    assert (again.exit_code, computed(again)) == (0, 40 - len(kept))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    names = [f"{i:02}.png" for i in range(40)]
    assert [image["path"] for image in read(out / "report.json")["images"]] == names
    assert [task["data"]["image"].rsplit("/", 1)[1] for task in read(out / "tasks.json")] == names
    assert len(read(out / "coco.json")["images"]) == 40


def test_a_second_run_is_refused_and_ctrl_c_says_how_to_go_on(
    run: Run, many: Path, model: Path, tmp_path: Path
) -> None:
    with started(many, tmp_path / "out", model, least=3) as process:
        second = run(many)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    assert second.exit_code == 2
    assert "another run is writing" in second.output
    assert process.returncode == 130
    assert "of 40 images are done and kept" in output
    assert "run the same command again" in output
    assert "Traceback" not in output


# --- Failures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good files in odd modes, and bad ones."""
    photos = tmp_path / "mixed"
    photos.mkdir()
    photo = picture(1)
    photo.convert("P").save(photos / "palette.png")
    photo.convert("CMYK").save(photos / "cmyk.jpg")
    photo.convert("RGBA").save(photos / "rgba.png")
    Image.fromarray(np.asarray(photo.convert("L"), dtype=np.uint16) * 257).save(photos / "grey16.png")
    photo.save(photos / "animated.gif", save_all=True, append_images=[picture(2), picture(3)])
    Image.new("RGB", (1, 1)).save(photos / "one.png")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(photos / f"exif{orientation}.jpg", exif=exif)
    photo.save(photos / "whole.jpg", quality=95)
    (photos / "cut.jpg").write_bytes((photos / "whole.jpg").read_bytes()[:700])
    (photos / "text.jpg").write_text("I am not a photo")
    (photos / "empty.png").write_bytes(b"")
    return photos


def test_broken_files_fail_alone(run: Run, mixed: Path, tmp_path: Path) -> None:
    result = run(mixed)
    assert result.exit_code == 1
    report = read(tmp_path / "out" / "report.json")
    reasons = {failure["path"]: failure["reason"] for failure in report["failures"]}
    assert set(reasons) == {"cut.jpg", "text.jpg", "empty.png"}
    assert "damaged or incomplete" in reasons["cut.jpg"]
    assert "not an image" in reasons["text.jpg"]
    assert "empty" in reasons["empty.png"]
    assert all(reason in result.stderr for reason in reasons.values())
    sizes = {image["path"]: (image["width"], image["height"]) for image in report["images"]}
    assert len(sizes) == 15
    assert sizes["one.png"] == (1, 1)
    assert [sizes[f"exif{i}.jpg"] for i in range(1, 9)] == [(48, 32)] * 4 + [(32, 48)] * 4
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert all(name in page for name in reasons)

    (mixed / "cut.jpg").write_bytes((mixed / "whole.jpg").read_bytes())
    (mixed / "text.jpg").unlink()
    (mixed / "empty.png").unlink()
    repaired = run(mixed)
    assert (repaired.exit_code, computed(repaired)) == (0, 0), "what was good is not computed again"


def test_max_failures(run: Run, mixed: Path, tmp_path: Path) -> None:
    stopped = run(mixed, "--max-failures", "1", "--batch-size", "1")
    assert stopped.exit_code == 1
    assert "2 files failed, more than --max-failures 1 allows" in stopped.output
    assert "cut.jpg" in stopped.output
    assert not (tmp_path / "out" / "tasks.json").exists()
    assert run(mixed, "--max-failures", "3").exit_code == 1
    assert len(read(tmp_path / "out" / "tasks.json")) == 15


def test_an_image_that_the_model_fails_on_takes_no_other_down(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lasagna.assistant import Lasagna

    answer = Lasagna.segment_batch

    def segment_batch(self: Lasagna, images: list[Image.Image], *rest: Any, **options: Any) -> Any:
        if any(np.array_equal(np.asarray(image), bad) for image in images):
            raise RuntimeError("out of memory")
        return answer(self, images, *rest, **options)

    with Image.open(folder / "b.png") as photo:
        bad = np.asarray(photo.convert("RGB"))
    monkeypatch.setattr(Lasagna, "segment_batch", segment_batch)
    result = run(folder, "--batch-size", "3")
    assert result.exit_code == 1
    report = read(tmp_path / "out" / "report.json")
    assert {failure["path"] for failure in report["failures"]} == {"b.png", "south/copy of b.png"}
    assert all("out of memory" in failure["reason"] for failure in report["failures"])
    assert len(report["images"]) == len(NAMES) - 2


def test_folder_that_may_not_be_read_is_a_failure(run: Run, folder: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every folder; test_image tries a file as another user")
    (folder / "south").chmod(0)
    result = run(folder)
    (folder / "south").chmod(0o755)
    assert result.exit_code == 1
    assert "south" in read(tmp_path / "out" / "report.json")["failures"][0]["path"]


@pytest.mark.parametrize(
    ("arguments", "labels", "says"),
    [
        (["photos"], None, "no classes: give one of --labels, --labels-file and --label-config"),
        (["photos", "--labels-file", "x.txt"], "a", "classes in several ways"),
        (["photos"], "", "give at least one label"),
        (["photos"], " , ", "give at least one label"),
        (["photos"], 'sky,"road', "double quotes"),
        (["photos"], "bell\a", "Label Studio cannot store"),
        (["photos", "--labels-file", "x.txt"], None, "x.txt cannot be read"),
        (["photos", "--format", "tiff"], "a", "tiff is no format"),
        (["photos", "--format", ","], "a", "nothing is no format"),
        (["photos", "--threshold", "2"], "a", "0<x<1"),
        (["empty"], "a", "it is empty"),
        (["texts"], "a", "found 2 x .txt"),
        (["nothing"], "a", "there is no file or folder 'nothing'"),
        (["photos/*.bmp"], "a", "no file matches the pattern"),
        (["photos", "--image-root", "empty"], "a", "is not below the image root"),
        ([], "a", "Missing argument"),
    ],
)
def test_what_cannot_be_started_says_why(
    arguments: list[str], labels: str | None, says: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "empty", "texts"):
        (tmp_path / name).mkdir()
    picture(1).save(tmp_path / "photos" / "a.png")
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text(name)
    result = run(*arguments, labels=labels)
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out" / "report.json").exists()


def test_an_unknown_checkpoint(run: Run, folder: Path) -> None:
    result = CliRunner().invoke(
        main, ["annotate", str(folder), "--labels", "a", "--out", str(folder / "out"), "--model", "nanno"]
    )
    assert result.exit_code == 2
    assert "nanno" in result.output


# --- Labels -----------------------------------------------------------------------------------------------------------

ODD = [
    "bag, purse",
    '19" rack',
    "<SEG>",
    "cat <NEG>, dog <SEG>",
    "Straße",
    "街灯",
    "cat",
    "Cat",
    "CAT",
    "x" * 300,
    "...",
]


def test_odd_labels_come_back_as_themselves_everywhere(run: Run, folder: Path, tmp_path: Path) -> None:
    labels = ",".join('"' + label.replace('"', '""') + '"' for label in [*ODD, "<script>alert(1)</script>"])
    assert run(folder / "a.jpg", "--threshold", "0.001", labels=labels).exit_code == 0
    out, expected = tmp_path / "out", [*ODD, "<script>alert(1)</script>"]
    assert [row["name"] for row in read(out / "report.json")["images"][0]["classes"]] == expected
    assert [row["name"] for row in read(out / "coco.json")["categories"]] == expected
    assert [row["name"] for row in read(out / "masks" / "classes.json")][1:] == expected
    task = read(out / "tasks.json")[0]
    interface = LabelInterface((out / "label_config.xml").read_text())
    assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []
    drawn = [region["value"]["brushlabels"][0] for region in task["predictions"][0]["result"]]
    assert set(drawn) <= set(expected)
    page = (out / "gallery.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_500_labels(run: Run, folder: Path, tmp_path: Path) -> None:
    labels = [f"class {i}" for i in range(500)]
    assert run(folder / "a.jpg", labels=",".join(labels)).exit_code == 0
    assert [row["name"] for row in read(tmp_path / "out" / "report.json")["images"][0]["classes"]] == labels
    with Image.open(tmp_path / "out" / "masks" / "a.png") as png:
        assert png.mode == "I;16"


def test_labels_file_with_words_for_the_model(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("# street\nAuto = car\nHimmel = sky\n", encoding="utf-8")
    assert run(folder / "a.jpg", "--labels-file", tmp_path / "labels.txt", labels=None).exit_code == 0
    english = run(folder / "a.jpg", out=tmp_path / "english", labels="car,sky")
    assert english.exit_code == 0
    german, english_rows = (
        read(tmp_path / name / "report.json")["images"][0]["classes"] for name in ("out", "english")
    )
    assert [row["name"] for row in german] == ["Auto", "Himmel"]
    assert [row["probability"] for row in german] == [row["probability"] for row in english_rows]


def test_label_config_of_a_project(run: Run, folder: Path, tmp_path: Path) -> None:
    xml = (
        '<View><Image name="img" value="$photo"/><PolygonLabels name="p" toName="img"><Label value="Auto" alias="car"/>'
        '<Label value="sky"/></PolygonLabels><RectangleLabels name="r" toName="img"><Label value="sky"/>'
        "</RectangleLabels></View>"
    )
    (tmp_path / "project.xml").write_text(xml)
    options = [
        "--label-config",
        tmp_path / "project.xml",
        "--threshold",
        "0.001",
        "--image-url-prefix",
        "https://x.org/i/",
    ]
    assert run(folder, *options, labels=None).exit_code == 0
    tasks = read(tmp_path / "out" / "tasks.json")
    assert [task["data"]["photo"] for task in tasks][:3] == [f"https://x.org/i/{name}" for name in NAMES[:3]]
    for task in tasks:
        assert LabelInterface(xml).validate_prediction(task["predictions"][0], return_errors=True) == []
    regions = [region for task in tasks for region in task["predictions"][0]["result"]]
    assert {(r["from_name"], *r["value"][r["type"]]) for r in regions} == {("p", "car"), ("p", "sky"), ("r", "sky")}
    assert (tmp_path / "out" / "label_config.xml").read_text() == xml


def test_help_shows_examples() -> None:
    shown = CliRunner().invoke(main, ["annotate", "--help"])
    assert shown.exit_code == 0
    assert "lasagna annotate photos --labels sky,road,cat --out out" in shown.output
    assert "Exit code" in shown.output
