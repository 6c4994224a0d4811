"""`lasagna annotate`: labels of every kind come back as themselves."""

from pathlib import Path

from click.testing import CliRunner
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

from lasagna.commands.cli import main

from .made import NAMES, Run, read

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


def test_the_class_list_is_said_before_anything_is_computed(run: Run, folder: Path, tmp_path: Path) -> None:
    said = run(folder / "a.jpg", labels="sky,traffic light").stderr
    assert said.index("2 classes: sky, traffic light") < said.index("Annotating")
    (tmp_path / "names.txt").write_text("Auto = car\nsky\n")
    result = run(folder / "a.jpg", labels=f"@{tmp_path / 'names.txt'}")
    assert result.exit_code == 0
    assert "2 classes: Auto (read as car), sky" in result.stderr
    refused = run(folder / "a.jpg", labels="sky;tree", out=tmp_path / "other")
    assert refused.exit_code == 2
    assert "write 'sky,tree'" in " ".join(refused.stderr.split())
    assert not (tmp_path / "other").exists()


def test_help_shows_examples() -> None:
    shown = CliRunner().invoke(main, ["annotate", "--help"])
    assert shown.exit_code == 0
    assert "lasagna annotate photos --labels sky,road,cat --out out" in shown.output
    assert "Exit code" in shown.output
