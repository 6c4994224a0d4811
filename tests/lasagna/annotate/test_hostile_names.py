"""`lasagna annotate`: names that come from files (a list, an archive, an output that somebody sent) stay in their
folder, and one that cannot be a name costs its own image only."""

import json
import zipfile
from pathlib import Path

import pytest

from lasagna.annotate.output import Written
from lasagna.files import file_digest, write_atomically

from .made import Run, picture, read


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    picture(1).save(folder / "a.png")
    return folder


def test_a_received_output_deletes_nothing_outside(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(photos, "--format", "masks").exit_code == 0
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"mine")
    notes = out / ".results" / "written.json"
    written = read(notes)
    digest = file_digest(mine).hex()[:32]
    for name in ("masks/../../mine.png", f"masks/{mine}", "masks/./../../mine.png", "masks//../../mine.png"):
        written["files"][name] = [digest]
    notes.write_text(json.dumps(written))
    picture(2).save(photos / "b.png")
    assert run(photos, "--format", "masks").exit_code == 0
    assert mine.read_bytes() == b"mine"
    assert sorted(path.name for path in (out / "masks").glob("*.png")) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "content",
    [
        '{"layout": 2}',
        '{"layout": 2, "files": [], "sets": {}, "images": {}, "root": null}',
        '{"layout": 2, "files": {"masks/a.png": 3}, "sets": {}, "images": {}, "root": null}',
        '{"layout": 2, "files": {}, "sets": {}, "images": {"a.png": 1}, "root": null}',
        "[" * 100_000,
    ],
)
def test_damaged_notes_say_that_nothing_was_written(content: str, tmp_path: Path) -> None:
    (tmp_path / "written.json").write_text(content)
    assert Written.load(tmp_path / "written.json") == Written()


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "ä" * 130 + ".png", "y" * 300 + "/b.png", "a/" * 2500 + "c.png"])
def test_a_member_whose_name_is_too_long_fails_alone(name: str, run: Run, photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(photos / "a.png", "a.png")
        archive.write(photos / "a.png", name)
    result = run(tmp_path / "photos.zip", "--format", "masks,voc")
    assert result.exit_code == 1
    assert "give it a shorter one" in result.output
    assert [path.name for path in (tmp_path / "out" / "masks").glob("*.png")] == ["a.png"]


@pytest.mark.parametrize(
    "line",
    [
        "file:///etc/passwd",
        "memory://a.png",
        "simplecache::s3://bucket/a.png",
        "http://[::1/a.png",
        "http://host:99999/",
        "zip://a.png::http://host/b.zip",
        "x" * 5000,
        "\x1b[31mred.png",
    ],
)
def test_a_line_of_a_list_fails_alone(line: str, run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{line}\n{photos / 'a.png'}\n")
    result = run("--list", tmp_path / "list", "--format", "masks")
    assert result.exit_code == 1, result.output
    assert [path.name for path in (tmp_path / "out" / "masks").rglob("*.png")] == ["a.png"]


def test_a_file_with_a_long_name_of_many_bytes_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("𝄞" * 60 + ".png")
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"
