"""`lasagna annotate`: what images are called, whatever else lies around them, and which links lead to one."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from lasagna.annotate.archives import close_archives
from lasagna.annotate.folder import find_images, unique_stems

from .made import Run, picture, read
from .test_sources import archive, opened  # noqa: F401 - a fixture


def names(*arguments: str | Path) -> list[str]:
    return [file.name for file in find_images([str(argument) for argument in arguments]).files]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with one photo, two folders down."""
    photo = tmp_path / "photos" / "2024" / "siteA" / "cow.jpg"
    photo.parent.mkdir(parents=True)
    picture(1).save(photo)
    return tmp_path / "photos"


# --- Names ------------------------------------------------------------------------------------------------------------


def test_names_are_relative_to_the_folder_that_was_named(run: Run, site: Path, tmp_path: Path) -> None:
    assert run(site).exit_code == 0
    out = tmp_path / "out"
    assert [image["file_name"] for image in read(out / "coco.json")["images"]] == ["2024/siteA/cow.jpg"]
    assert (site / read(out / "coco.json")["images"][0]["file_name"]).exists()
    task = read(out / "tasks.json")[0]
    assert task["data"]["image"] == "/data/local-files/?d=photos/2024/siteA/cow.jpg"
    assert f"DOCUMENT_ROOT={tmp_path}" in (out / "IMPORT.md").read_text()

    (site / "2025").mkdir()
    picture(2).save(site / "2025" / "hen.jpg")
    assert run(site).exit_code == 0, "a second folder renames nothing"
    assert [image["file_name"] for image in read(out / "coco.json")["images"]] == ["2024/siteA/cow.jpg", "2025/hen.jpg"]
    assert sorted(p.relative_to(out).as_posix() for p in out.glob("masks/**/*.png")) == [
        "masks/2024/siteA/cow.png",
        "masks/2025/hen.png",
    ]
    assert read(out / "tasks.json")[0]["data"] == task["data"]


def test_the_base_of_every_kind_of_argument(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deep = "2024/siteA/cow.jpg"
    assert names(f"photos/{deep}") == ["cow.jpg"], "a file: its folder"
    assert names("photos/**/*.jpg") == [deep], "a pattern: what of it is fixed"
    assert names("photos/20*") == [deep]
    assert names("photos/2024", "photos") == [deep], "several: what they have in common"
    (tmp_path / "other").mkdir()
    assert names("photos", "other") == [f"photos/{deep}"], "a folder counts, whatever it holds"
    assert names("./photos/../photos/") == [deep]


def test_an_archive_is_named_as_a_folder(site: Path, tmp_path: Path, opened: None) -> None:  # noqa: F811
    data = (site / "2024/siteA/cow.jpg").read_bytes()
    for ending in ("zip", "tar.gz"):
        found = find_images([str(archive(ending, tmp_path / f"x.{ending}", {"deep/er/cow.jpg": data}))])
        assert [file.name for file in found.files] == ["deep/er/cow.jpg"]
        assert found.folder == tmp_path / "x"


def test_three_photos_give_three_outputs(run: Run, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, name in enumerate(["a.jpg", "a.png", "a.jpg.png"]):
        picture(i).save(photos / name)
    assert run(photos, "--format", "masks,voc,instances").exit_code == 0
    for kind, ending in (("masks", "png"), ("instances", "png"), ("voc", "xml")):
        found = sorted(path.name for path in (tmp_path / "out" / kind).glob(f"*.{ending}"))
        assert found == sorted(f"{name}.{ending}" for name in ("a.jpg", "a.png", "a.jpg.png")), kind
    rows = read(tmp_path / "out" / "instances" / "instances.json")
    assert len({row["png"] for row in rows}) == 3


@pytest.mark.parametrize(
    ("photos", "stems"),
    [
        (["a.jpg", "b.png"], ["a", "b"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"]),
        (["a.jpg.png", "a.png.jpg", "a.jpg", "a.png"], ["a.jpg.png", "a.png.jpg", "a.jpg", "a.png"]),
        (["X.JPG", "x.jpg"], ["X.JPG", "x.jpg~"]),
        (["a.jpg", "a.png/b.jpg"], ["a.jpg", "a.png/b"]),
        (["a", "a.jpg"], ["a", "a.jpg"]),
        (["a.jpg", "a.jpg~"], ["a.jpg", "a.jpg~"]),
        (["d.x/a.jpg", "d/x.jpg"], ["d.x/a", "d/x"]),
    ],
)
def test_stems(photos: list[str], stems: list[str]) -> None:
    assert [unique_stems(photos)[name] for name in photos] == stems
    assert [unique_stems(photos[::-1])[name] for name in photos] == stems, "whatever their order"


# --- Links ------------------------------------------------------------------------------------------------------------


def test_linked_folders_are_searched_once(run: Run, site: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "inner").mkdir(parents=True)
    picture(3).save(store / "inner" / "hen.jpg")
    (site / "siteB").symlink_to("../store")
    (site / "siteC").symlink_to(store)
    (site / "loop").symlink_to(".")
    (site / "latest").symlink_to("2024/siteA")
    (site / ".hidden").mkdir()
    picture(4).save(site / ".hidden" / "pig.jpg")
    (site / "shown").symlink_to(".hidden")
    result = run(site)
    assert result.exit_code == 0
    expected = ["2024/siteA/cow.jpg", "shown/pig.jpg", "siteB/inner/hen.jpg"]
    assert [image["path"] for image in read(tmp_path / "out" / "report.json")["images"]] == expected
    said = " ".join(result.stderr.split())
    assert "latest is passed over: it is a link to" in said
    assert "siteC is passed over" in said
    assert "loop is passed over: it is a link to a folder that it lies in" in said


def test_a_link_to_a_folder_that_is_named_too(site: Path, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "link").symlink_to(site)
    assert names(tmp_path / "first", site) == ["photos/2024/siteA/cow.jpg"]
    (tmp_path / "only").symlink_to(site)
    assert names(tmp_path / "only") == ["2024/siteA/cow.jpg"], "a link that is named itself"


def test_a_link_into_the_output_is_not_followed(run: Run, site: Path, tmp_path: Path) -> None:
    assert run(site).exit_code == 0
    (site / "pictures").symlink_to(tmp_path / "out" / "masks")
    assert run(site).exit_code == 0
    assert len(read(tmp_path / "out" / "report.json")["images"]) == 1


@pytest.mark.parametrize("kind", ["", "gz"])
def test_links_in_a_tar(kind: str, run: Run, tmp_path: Path) -> None:
    image = io.BytesIO()
    picture(5).save(image, "JPEG")
    path = tmp_path / f"photos.tar{'.' + kind if kind else ''}"
    links = [
        ("z/hard.jpg", tarfile.LNKTYPE, "z/real.jpg"),
        ("z/link.jpg", tarfile.SYMTYPE, "real.jpg"),
        ("y/up.jpg", tarfile.SYMTYPE, "../z/link.jpg"),
        ("y/out.jpg", tarfile.SYMTYPE, "/etc/hostname"),
        ("y/loop.jpg", tarfile.SYMTYPE, "loop.jpg"),
        ("store", tarfile.SYMTYPE, "../elsewhere"),
    ]
    with tarfile.open(path, f"w:{kind}") as file:  # type: ignore[call-overload]
        for name, sort, target in links[:1]:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = sort, target
            file.addfile(entry)
        entry = tarfile.TarInfo("z/real.jpg")
        entry.size = image.getbuffer().nbytes
        file.addfile(entry, io.BytesIO(image.getvalue()))
        for name, sort, target in links[1:]:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = sort, target
            file.addfile(entry)
    result = run(path)
    report = read(tmp_path / "out" / "report.json")
    assert sorted(image["path"] for image in report["images"]) == ["y/up.jpg", "z/hard.jpg", "z/link.jpg", "z/real.jpg"]
    reasons = {failure["path"]: failure["reason"] for failure in report["failures"]}
    assert reasons["y/out.jpg"] == "y/out.jpg is a link to /etc/hostname, which is not in the archive"
    assert reasons["y/loop.jpg"] == "y/loop.jpg is a link that leads to itself"
    assert result.exit_code == 1
    assert "store is passed over" in result.stderr


def test_a_zip_made_on_windows(run: Run, tmp_path: Path) -> None:
    image = io.BytesIO()
    picture(6).save(image, "JPEG")
    for i, system in enumerate((0, 3)):
        path = tmp_path / f"w{i}.zip"
        with zipfile.ZipFile(path, "w") as file:
            for name in ("photos\\day 1\\a.jpg", "photos\\day 2\\"):
                entry = zipfile.ZipInfo(name)
                entry.create_system = system
                file.writestr(entry, image.getvalue() if name.endswith("jpg") else b"")
        assert run(path, out=tmp_path / f"out{i}").exit_code == 0
        assert read(tmp_path / f"out{i}" / "coco.json")["images"][0]["file_name"] == "photos/day 1/a.jpg"
    with zipfile.ZipFile(tmp_path / "unix.zip", "w") as file:  # there it is a letter like any other
        file.writestr("photos/a\\b.jpg", image.getvalue())
    assert names(tmp_path / "unix.zip") == ["photos/a\\b.jpg"]
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("..\\..\\up.jpg", image.getvalue())
    assert names(tmp_path / "evil.zip") == []
    close_archives()


def test_links_and_names_that_come_twice_in_a_zip(run: Run, tmp_path: Path) -> None:
    image = io.BytesIO()
    picture(7).save(image, "JPEG")
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("real/a.jpg", image.getvalue())
        for name, target in (("links/b.jpg", "../real/a.jpg"), ("links/c.jpg", "/etc/hostname")):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, 0o120777 << 16
            file.writestr(entry, target)
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("real/a.jpg", image.getvalue())
    result = run(path)
    report = read(tmp_path / "out" / "report.json")
    assert [image["path"] for image in report["images"]] == ["links/b.jpg", "real/a.jpg"]
    assert "which is not in the archive" in report["failures"][0]["reason"]
    assert "real/a.jpg is twice in the archive" in result.stderr


# --- What is passed over ----------------------------------------------------------------------------------------------


def test_photos_of_other_formats_are_named(run: Run, site: Path) -> None:
    for name in ("a.CR2", "b.cr2", "c.jxl", "d.psd", "e.PSD", "f.svg", "notes.txt"):
        (site / name).write_bytes(b"x")
    result = run(site)
    assert result.exit_code == 0
    named = "not read, for these formats are not: 2 x .cr2, 2 x .psd, 1 x .jxl, 1 x .svg"
    assert named in " ".join(result.stderr.split())
    (site / "none").mkdir()
    os.rename(site / "c.jxl", site / "none" / "c.jxl")
    only = run(site / "none", out=site / "out")
    assert only.exit_code == 2
    assert "1 x .jxl" in only.stderr
