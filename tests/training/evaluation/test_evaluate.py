"""`lasagna evaluate`: figures that are known because the answers are, and the real command on a real model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lasagna import ClassAnswer, Lasagna, Segmentation
from lasagna.commands.cli import main
from lasagna.errors import DataError
from training.data.records import OTHER
from training.data.sources.folder import Folder
from training.data.spread import spread
from training.evaluation.chunks import ChunkSize, chunk_table, evaluate_chunk_sizes
from training.evaluation.evaluate import Distractors, choose_distractors, evaluate_dataset, read_names

SIZE = (24, 32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images of 24 x 32: classes sky, cat, car and an unasked background; void on the right edge.

    sky is above in all, the cat below left in images 0 and 1, a car is nowhere, the rest is background.
    """
    root = tmp_path / "set"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps({"classes": ["soil", "sky", "cat", "car"], "background_index": 0}))
    (root / "val.txt").write_text("a0\na1\na2\na3\n")
    for i in range(4):
        mask = np.zeros(SIZE, np.uint8)
        mask[:12] = 1
        if i < 2:
            mask[12:, :16] = 2
        mask[:, 28:] = 255
        Image.fromarray(mask).save(root / "masks" / f"a{i}.png")
        Image.fromarray(np.full((*SIZE, 3), 40 * i, np.uint8)).save(root / "images" / f"a{i}.jpg")
    return root


class Known:
    """A model whose answers are made from the annotation, so that every figure can be worked out by hand.

    Args:
        dataset: Whose images are asked, in order.
        change: Called with the image's index and {class: mask or None} before they become the answer.
    """

    def __init__(self, dataset: Folder, change: Callable[[int, dict[str, Any]], None] = lambda i, masks: None) -> None:
        self.dataset, self.change = dataset, change
        self.calls: list[tuple[int, dict[str, Any]]] = []

    def segment_batch(
        self, images: Sequence[Image.Image], classes: Sequence[Sequence[str]], **options: Any
    ) -> list[Segmentation]:
        self.calls.append((len(images), options))
        return [self._answer(image, names) for image, names in zip(images, classes, strict=True)]

    def _answer(self, image: Image.Image, names: Sequence[str]) -> Segmentation:
        index = round(np.asarray(image).mean() / 40)
        (truth,) = self.dataset[index].read()
        masks: dict[str, Any] = dict.fromkeys(names)
        for i, name in enumerate(self.dataset.classes):
            if (truth == i).any():
                masks[name] = truth == i
        self.change(index, masks)
        size = (image.height, image.width)
        return Segmentation(size, tuple(ClassAnswer(n, 0.1 if m is None else 0.9, m) for n, m in masks.items()))


def test_right_answers_score_one(data: Path) -> None:
    dataset = Folder(data, "val")
    model = Known(dataset)
    report = evaluate_dataset(model, dataset, batch_size=3, chunk_size=2, threshold=0.4).as_dict()
    assert report["miou"] == 1.0
    assert report["pixel_accuracy"] == 1.0
    assert report["presence"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "average_precision": 1.0}
    assert report["absent_false_positive_rate"] == 0.0
    assert report["images"] == 4
    assert report["seconds_per_image"] > 0
    assert report["per_class"]["car"] == {"iou": None, "precision": None, "recall": None, "images": 0}
    assert report["per_class"]["cat"] == {"iou": 1.0, "precision": 1.0, "recall": 1.0, "images": 2}
    assert [size for size, _ in model.calls] == [1, 3, 1]  # one to warm up, then the batches
    assert {frozenset(options.items()) for _, options in model.calls} == {
        frozenset({("threshold", 0.4), ("exclusive", True), ("chunk_size", 2)})
    }


def test_wrong_answers_are_counted_where_they_are_wrong(data: Path) -> None:
    def change(index: int, masks: dict[str, Any]) -> None:
        if index == 0:
            masks["cat"] = None  # missed
        if index == 2:
            masks["car"] = np.zeros(SIZE, bool)
            masks["car"][12:, :] = True  # over background, and over void, which does not count
            masks["zebra"] = np.zeros(SIZE, bool)  # said present without a pixel
        if index == 3:
            masks["sky"][:6] = False
            masks["zebra"] = np.zeros(SIZE, bool)
            masks["zebra"][:6] = True

    dataset = Folder(data, "val")
    result = evaluate_dataset(Known(dataset, change), dataset, distractors=Distractors(("zebra", "oven")))
    report = result.as_dict()
    sky, cat = 12 * 28, 12 * 16
    assert report["per_class"]["sky"]["iou"] == pytest.approx((3 * sky + sky / 2) / (4 * sky))
    assert report["per_class"]["cat"]["iou"] == pytest.approx(1 / 2)
    assert report["per_class"]["car"] == {"iou": 0.0, "precision": 0.0, "recall": None, "images": 0}
    assert report["miou"] == pytest.approx((7 / 8 + 1 / 2 + 0) / 3)
    # present pairs: 4 sky, 2 cat, one missed; absent: 2 cat, 4 car, 8 distractors, three of them said present
    assert report["presence"]["precision"] == pytest.approx(5 / 8)
    assert report["presence"]["recall"] == pytest.approx(5 / 6)
    assert report["absent_false_positive_rate"] == pytest.approx(3 / 14)
    assert report["distractors"]["absent_false_positive_rate"] == pytest.approx(2 / 8)
    assert report["distractors"]["own_absent_false_positive_rate"] == pytest.approx(1 / 6)
    scored = 4 * 24 * 28
    assert report["pixel_accuracy"] == pytest.approx((scored - cat - 12 * 28 - 6 * 28) / scored)
    assert "zebra" not in report["per_class"]


@pytest.mark.parametrize("broken", ["image", "mask", "size"])
def test_a_broken_file_fails_alone(data: Path, broken: str) -> None:
    if broken == "image":
        (data / "images" / "a1.jpg").write_bytes(b"no image")
    elif broken == "mask":
        (data / "masks" / "a1.png").write_bytes(b"no mask")
    else:
        Image.fromarray(np.zeros((5, 7), np.uint8)).save(data / "masks" / "a1.png")
    dataset = Folder(data, "val")
    seen: list[None] = []
    result = evaluate_dataset(Known(dataset), dataset, batch_size=2, on_image=lambda: seen.append(None))
    assert list(result.failures) == ["a1"]
    assert "a1." in result.failures["a1"]
    assert len(seen) == 4
    report = result.as_dict()
    assert (report["images"], report["miou"], report["per_class"]["cat"]["images"]) == (3, 1.0, 1)


def test_no_image_can_be_read(data: Path) -> None:
    for i in range(4):
        (data / "images" / f"a{i}.jpg").write_bytes(b"no image")
    dataset = Folder(data, "val")
    report = evaluate_dataset(Known(dataset), dataset).as_dict()
    assert (report["images"], report["miou"], report["seconds_per_image"]) == (0, None, None)
    assert len(report["failures"]) == 4


def test_a_set_with_a_name_twice_or_without_images_is_refused(data: Path) -> None:
    (data / "val.txt").write_text("")
    dataset = Folder(data, "val")
    with pytest.raises(DataError, match="lists no image"):
        evaluate_dataset(Known(dataset), dataset)
    (data / "classes.json").write_text(json.dumps({"classes": ["cat", "cat"], "background_index": None}))
    dataset = Folder(data, "val")
    with pytest.raises(DataError, match="cat twice"):
        evaluate_dataset(Known(dataset), dataset)


@pytest.mark.parametrize(
    ("length", "limit", "expected"),
    [(5, None, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (10, 3, [0, 3, 6]), (3, 1, [0])],
)
def test_spread(length: int, limit: int | None, expected: list[int]) -> None:
    assert spread(length, limit) == expected


def test_names_come_from_a_folder_or_a_text_file(data: Path, tmp_path: Path) -> None:
    assert read_names(data) == ["sky", "cat", "car"]
    (tmp_path / "names.txt").write_text("zebra\n\n  hair drier \n")
    assert read_names(tmp_path / "names.txt") == ["zebra", "hair drier"]
    with pytest.raises(DataError, match="no class names there"):
        read_names(tmp_path / "missing")
    (tmp_path / "classes.json").write_text("[]")
    with pytest.raises(DataError, match="no list of class names"):
        read_names(tmp_path)


def test_distractors_leave_out_what_may_be_in_the_photos() -> None:
    own = ("sky", "building", "road", "car", "pedestrian", "pavement")
    chosen = choose_distractors("camvid", own, ["zebra", "cars", "person", "window", "sidewalk", "griffin", "zebra"])
    assert chosen.names == ("zebra", "griffin")
    assert set(chosen.skipped) == {"cars", "person", "window", "sidewalk"}
    assert "own class 'car'" in chosen.skipped["cars"]
    assert "unannotated" in chosen.skipped["window"] or "annotated" in chosen.skipped["window"]
    assert choose_distractors("my_photos", own, ["window", "Car", "car"]).names == ("window",)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    Lasagna.random(seed=0).save_pretrained(folder)
    return folder


def run(*args: object) -> Any:
    return CliRunner().invoke(main, ["evaluate", "--device", "cpu", *[str(arg) for arg in args]])


def test_the_command_prints_one_json_object(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    names, out = tmp_path / "names.txt", tmp_path / "report.json"
    names.write_text("zebra\ncats\n")
    result = run("--model", checkpoint, "--data", data, "--classes-from", names, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert json.loads(out.read_text()) == report
    assert report["images"] == 4
    assert report["model_version"].startswith("tiny-")
    assert report["classes"] == ["sky", "cat", "car"]
    assert set(report["presence"]) == {"precision", "recall", "f1", "average_precision"}
    assert 0 <= report["miou"] <= 1
    assert 0 <= report["calibration_error"] <= 1
    assert 0 <= report["absent_false_positive_rate"] <= 1
    assert report["distractors"]["names"] == ["zebra"]
    assert list(report["distractors"]["skipped"]) == ["cats"]
    assert report["environment"]["device"] == "cpu"
    # the figures are those of the answers
    model, dataset = Lasagna.from_pretrained(str(checkpoint), device="cpu"), Folder(data, "val")
    again = evaluate_dataset(model, dataset, distractors=Distractors(("zebra",))).as_dict()
    assert again["miou"] == pytest.approx(report["miou"], abs=1e-6)
    assert again["presence"] == pytest.approx(report["presence"], abs=1e-6)


def test_the_command_names_a_broken_image_and_exits_1(checkpoint: Path, data: Path) -> None:
    (data / "images" / "a2.jpg").write_bytes(b"\xff\xd8\xff")
    result = run("--model", checkpoint, "--data", data)
    assert result.exit_code == 1
    assert "mIoU" in result.stdout
    assert "not scored: a2" in result.stderr


@pytest.mark.parametrize("missing", ["folder", "classes.json", "val.txt", "images/a3.jpg"])
def test_an_incomplete_data_set_says_what_was_looked_for(data: Path, missing: str) -> None:
    path = data.parent / "nothing" if missing == "folder" else data / missing
    if missing != "folder":
        path.unlink()
    result = run("--data", path if missing == "folder" else data)
    assert result.exit_code == 2
    assert str(path) in result.stderr


def test_a_data_set_has_a_name_below_the_folder_of_all(
    checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LASAGNA_DATA", str(data.parent))
    (data.parent / "names.txt").write_text("zebra\n")
    result = run("--model", checkpoint, "--data", data.name, "--classes-from", "names.txt", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["data"], report["distractors"]["names"]) == (str(data), ["zebra"])
    result = run("--data", "nowhere")
    assert result.exit_code == 2
    assert f"nowhere is no folder, nor is {data.parent / 'nowhere'}" in " ".join(result.stderr.split())


def test_a_suite_needs_the_laboratory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = data / "suite.yaml"
    suite.write_text("output: out\n")
    monkeypatch.setattr("training.commands.evaluate.entry_points", lambda group: ())
    result = run(suite)
    assert result.exit_code == 2
    assert "suite files are run by the laboratory (lab/), which is no part of the package" in result.stderr


def test_background_is_a_class_of_nobody(data: Path) -> None:
    dataset = Folder(data, "val")
    assert dataset.classes == ("sky", "cat", "car")
    assert (dataset[3].read()[0, 12:, :28] == OTHER).all()


@pytest.mark.parametrize(
    ("text", "classes"), [("N", 133), ("N/2", 67), ("N/4", 34), ("1", 1), ("40", 40), ("500", 133), ("N/500", 1)]
)
def test_chunk_sizes_of_133_classes(text: str, classes: int) -> None:
    assert ChunkSize(text).classes(133) == classes


@pytest.mark.parametrize("text", ["", "0", "N/0", "M", "2/3", "-1", "N,,1", "N/x"])
def test_what_is_no_chunk_size_is_named(data: Path, text: str) -> None:
    result = run("--data", data, "--chunk-sizes", text)
    assert result.exit_code == 2
    assert "no chunk size" in result.stderr


def test_each_chunk_size_is_evaluated(data: Path) -> None:
    dataset = Folder(data, "val")
    model = Known(dataset)
    rows = evaluate_chunk_sizes(model, dataset, [ChunkSize("N"), ChunkSize("N/2"), ChunkSize("1")], batch_size=4)
    assert [(row["size"], row["classes_per_list"], row["lists"]) for row in rows] == [
        ("N", 3, 1),
        ("N/2", 2, 2),
        ("1", 1, 3),
    ]
    assert [options["chunk_size"] for count, options in model.calls if count == 4] == [3, 2, 1]
    assert [row["miou"] for row in rows] == [1, 1, 1]
    lines = chunk_table(rows).splitlines()
    assert lines[2].startswith("| N (3) | 1 | 100.0 | 100.0 | 100.0 | 0.0 |")
    assert lines[2].endswith("| 42.0 | 43.9 |")  # the paper's
    assert lines[4].endswith("| – | – |")  # which has no row for lists of one


def test_the_command_prints_the_table_of_chunk_sizes(checkpoint: Path, data: Path) -> None:
    result = run("--model", checkpoint, "--data", data, "--chunk-sizes", "N,1", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["classes_per_list"] for row in report["chunk_sizes"]] == [3, 1]
    assert run("--data", data, "--chunk-sizes", "N", "--chunk-size", "2").exit_code == 2


def test_what_the_model_was_never_taught_is_in_no_figure(data: Path) -> None:
    """Also not where it is annotated; what is drawn in its place is wrong there all the same."""
    dataset = Folder(data, "val")
    known = Known(dataset)

    class Unsure(Known):
        def segment_batch(self, images: Any, classes: Any, **options: Any) -> list[Segmentation]:
            answers = known.segment_batch(images, classes, **options)
            if options.get("guess_unknown"):
                return answers
            return [
                Segmentation(answer.size, tuple(ClassAnswer.unknown("cat") if a.name == "cat" else a for a in answer))
                for answer in answers
            ]

    report = evaluate_dataset(Unsure(dataset), dataset).as_dict()
    whole = evaluate_dataset(known, dataset).as_dict()
    assert report["unknown"] == {"cat": whole["per_class"]["cat"]["images"]}
    assert "cat" not in report["per_class"]
    assert report["miou"] == report["pixel_accuracy"] == 1.0
    assert report["presence"]["recall"] == 1.0
    assert report["calibration_error"] is not None
    assert {**whole["per_class"], **report["per_class"]} == whole["per_class"]
    guessed = evaluate_dataset(Unsure(dataset), dataset, guess_unknown=True).as_dict()
    assert guessed["unknown"] == {}
    assert guessed["per_class"] == whole["per_class"]


def test_a_set_of_which_nothing_is_known_has_no_figures(data: Path) -> None:
    class Lost:
        def segment_batch(self, images: Any, classes: Any, **_: Any) -> list[Segmentation]:
            return [
                Segmentation((image.height, image.width), tuple(map(ClassAnswer.unknown, names)))
                for image, names in zip(images, classes, strict=True)
            ]

    dataset = Folder(data, "val")
    report = evaluate_dataset(Lost(), dataset).as_dict()
    assert list(report["unknown"]) == list(dataset.classes)
    assert report["images"] == 4
    for name in (
        "miou",
        "calibration_error",
        "calibration_error_of_halves",
        "absent_false_positive_rate",
        "reliability",
    ):
        assert report[name] is None, name
    assert report["per_class"] == {}
    json.dumps(report, allow_nan=False)
