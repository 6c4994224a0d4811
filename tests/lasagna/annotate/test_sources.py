"""`lasagna annotate`: lists, archives and addresses give what the same photos in a folder give."""

import functools
import io
import os
import random
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from lasagna.annotate.archives import ArchiveMember, close_archives
from lasagna.annotate.folder import find_images
from lasagna.annotate.sources import RemoteFile
from lasagna.errors import ImageError

from .made import NAMES, Run, picture, read

ENDINGS = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]
SAME = ["coco.json", "coco_polygons.json", "masks/a.png", "masks/south/x.png", "masks/classes.json"]
"""Files that say nothing of where the photos lie."""


def archive(ending: str, path: Path, members: dict[str, bytes]) -> Path:
    """An archive with these members, in this order."""
    if ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
        return path
    kind = ending.partition(".")[2]
    with tarfile.open(path, f"w:{kind}") as file:  # type: ignore[call-overload]
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def opened() -> Iterator[None]:
    """Archives that a test reads itself are closed after it."""
    yield
    close_archives()


# --- Lists ------------------------------------------------------------------------------------------------------------


def test_list(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture(7).save(folder / "[1] *.png")
    lines = ["photos/b.png", "", str(folder / "a.jpg"), "photos/south", "photos/b.png", "photos/[1] *.png", "gone.jpg"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    result = run("--list", tmp_path / "list.txt", folder / "north")
    assert result.exit_code == 1
    report = read(tmp_path / "out" / "report.json")
    assert [image["path"] for image in report["images"]] == ["[1] *.png", *NAMES]
    assert report["failures"] == [{"path": "gone.jpg", "reason": "gone.jpg: there is no file or folder of this name"}]


def test_list_from_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lasagna.annotate.folder import read_list

    odd = os.fsencode(folder) + b"/\xff.png"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(odd + b"\n\n" + os.fsencode(folder))))
    assert read_list(Path("-")) == [os.fsdecode(odd), str(folder)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--list", "none.txt"], "the list none.txt cannot be read"), (["--list", "empty.txt"], "no image in the list")],
)
def test_lists_that_give_nothing(
    arguments: list[str], says: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.output


# --- Archives ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_archive_is_the_folder_that_it_unpacks_to(ending: str, run: Run, folder: Path, tmp_path: Path) -> None:
    members = content(folder)
    members |= {".hidden.png": members["b.png"], "__MACOSX/._a.jpg": b"x", "notes.txt": b"no image"}
    path = archive(ending, tmp_path / f"photos.{ending}", members)
    result = run(folder, out=tmp_path / "expected")
    assert result.exit_code == 0
    shutil.rmtree(folder)
    before = set(tmp_path.iterdir())
    result = run(path)
    assert result.exit_code == 0, result.output
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}, "nothing is unpacked"
    for name in ["tasks.json", *SAME]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name
    steps = (tmp_path / "out" / "IMPORT.md").read_text()
    assert f"1. Unpack `{path}` into `{folder}`" in steps


def test_members_that_lead_out_of_the_archive(run: Run, folder: Path, tmp_path: Path) -> None:
    data = (folder / "b.png").read_bytes()
    names = ["good/a.png", "../up.png", "/etc/root.png", "good/../../up.png", "./good/b.png", "good//c.png"]
    path = archive("tar", tmp_path / "deep.tar", dict.fromkeys(names, data))
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("good/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    before = set(tmp_path.iterdir())
    result = run(path)
    report = read(tmp_path / "out" / "report.json")
    assert result.exit_code == 1
    assert [image["path"] for image in report["images"]] == ["good/a.png", "good/b.png"]
    reasons = [failure["reason"] for failure in report["failures"]]
    assert len(reasons) == 5
    assert sum("leads out of its folder" in reason for reason in reasons) == 4
    assert "good/link.png is a link to /etc/passwd, which is not in the archive" in reasons
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}
    assert not {"up", "root"} & {p.stem for p in [*tmp_path.rglob("*.png"), *tmp_path.parent.glob("*.png")]}


def test_a_damaged_member_fails_alone_and_a_damaged_archive_says_so(run: Run, folder: Path, tmp_path: Path) -> None:
    path = archive("zip", tmp_path / "photos.zip", content(folder))
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        entry = file.getinfo("b.png")
        start = entry.header_offset + 30 + len("b.png")
    raw[start : start + 40] = bytes(40)
    path.write_bytes(raw)
    assert run(path).exit_code == 1
    (failure,) = read(tmp_path / "out" / "report.json")["failures"]
    assert failure["reason"].startswith("b.png cannot be read from its archive")
    path.write_bytes(raw[:300])
    result = run(path)
    assert result.exit_code == 2
    assert "cannot be opened as an archive" in result.output


def test_a_member_over_the_limit(tmp_path: Path, opened: None) -> None:
    for ending in ("zip", "tar.gz"):
        path = archive(ending, tmp_path / f"x.{ending}", {"zeros.png": bytes(10_000_000), "none.png": b""})
        with pytest.raises(ImageError, match="more than 1000 bytes"):
            ArchiveMember(str(path), "zeros.png").read(1000, "zeros.png")
        with pytest.raises(ImageError, match="is empty"):
            ArchiveMember(str(path), "none.png").read(1000, "none.png")


@pytest.mark.parametrize("ending", ENDINGS)
def test_threads_read_members_in_any_order(ending: str, tmp_path: Path, opened: None) -> None:
    members = {f"{i}.png": os.urandom(5000 + i) for i in range(40)}
    path = str(archive(ending, tmp_path / f"x.{ending}", members))
    names = list(members)
    random.Random(0).shuffle(names)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: ArchiveMember(path, name).read(10_000, name), names))
    assert found == [members[name] for name in names]


def test_members_of_a_compressed_tar_keep_its_order(tmp_path: Path, folder: Path, opened: None) -> None:
    data = (folder / "b.png").read_bytes()
    for ending, order in (("tar", ["a.png", "b.png", "c.png"]), ("tar.gz", ["c.png", "a.png", "b.png"])):
        path = archive(ending, tmp_path / f"x.{ending}", dict.fromkeys(["c.png", "a.png", "b.png"], data))
        assert [file.name for file in find_images([str(path)]).files] == order


# --- Addresses --------------------------------------------------------------------------------------------------------


@pytest.fixture
def http(tmp_path: Path, folder: Path, serving: Any) -> str:
    """An HTTP server with the photos at /photos/, and one archive of them."""
    archive("zip", tmp_path / "packed.zip", content(folder))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            if "refused" in self.path:
                self.send_error(403)
            else:
                super().do_GET()

    handler = functools.partial(Quiet, directory=str(tmp_path))
    return str(serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)))


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(moto: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with the photos below photos/, and an archive of them, on moto's S3 server."""
    for name, value in {
        "AWS_ENDPOINT_URL": moto,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    bucket = f"corpus-{abs(hash(str(tmp_path))) % 10**9}"
    files.mkdir(bucket)
    for name, data in content(folder).items():
        files.pipe(f"{bucket}/photos/{name}", data)
    files.pipe(f"{bucket}/photos/notes.txt", b"no image")
    packed = archive("tar", tmp_path / "packed.tar", content(folder))
    files.pipe(f"{bucket}/packed.tar", packed.read_bytes())
    files.chmod(f"{bucket}/packed.tar", "public-read")
    return f"s3://{bucket}"


def check_same(run: Run, folder: Path, tmp_path: Path, *arguments: str) -> list[str]:
    """That addresses give what the folder gives; returns the addresses in tasks.json."""
    assert run(folder, out=tmp_path / "expected").exit_code == 0
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    for name in SAME:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name
    return [task["data"]["image"] for task in read(tmp_path / "out" / "tasks.json")]


@pytest.mark.slow
def test_http_folder(http: str, run: Run, folder: Path, tmp_path: Path) -> None:
    found = check_same(run, folder, tmp_path, f"{http}/photos/")
    assert found[0] == f"{http}/photos/a.jpg"
    assert found[3] == f"{http}/photos/south/copy%20of%20b.png"
    assert "by their own addresses" in (tmp_path / "out" / "IMPORT.md").read_text()


@pytest.mark.slow
def test_http_archive(moto: str, s3: str, http: str, run: Run, folder: Path, tmp_path: Path) -> None:
    check_same(run, folder, tmp_path, f"{moto}/{s3.removeprefix('s3://')}/packed.tar")
    refused = run(f"{http}/packed.zip")
    assert refused.exit_code == 2
    assert "range requests" in refused.output, "a server that only sends whole files"


@pytest.mark.slow
def test_http_images_that_fail(http: str, run: Run, tmp_path: Path) -> None:
    result = run(
        f"{http}/photos/a.jpg?token=hidden", f"{http}/photos/no.jpg?token=hidden", f"{http}/refused.jpg?token=hidden"
    )
    assert result.exit_code == 1
    report = read(tmp_path / "out" / "report.json")
    assert [image["path"] for image in report["images"]] == ["photos/a.jpg"]
    reasons = {failure["path"]: failure["reason"] for failure in report["failures"]}
    assert "there is nothing at this address" in reasons["photos/no.jpg"]
    assert "403" in reasons["refused.jpg"]
    assert "hidden" not in result.output + (tmp_path / "out" / "report.json").read_text()
    assert read(tmp_path / "out" / "tasks.json")[0]["data"]["image"].endswith("a.jpg?token=hidden"), (
        "a signed address is the only one that Label Studio can load"
    )


@pytest.mark.slow
@pytest.mark.parametrize("below", ["photos/", "photos", "photos/**/*.*g", "packed.tar"])
def test_s3(below: str, s3: str, run: Run, folder: Path, tmp_path: Path) -> None:
    found = check_same(run, folder, tmp_path, f"{s3}/{below}")
    if below != "packed.tar":
        assert found[5] == f"{s3}/photos/south/ä &#1.png"


def test_s3_what_fails(s3: str, run: Run, tmp_path: Path) -> None:
    assert run(f"{s3}/photos/a.jpg", f"{s3}/photos/gone.jpg").exit_code == 1
    (failure,) = read(tmp_path / "out" / "report.json")["failures"]
    assert failure["reason"] == "gone.jpg cannot be fetched: there is nothing at this address"
    result = run(f"{s3}/nothing/")
    assert result.exit_code == 2
    assert "no image in" in result.output


def test_an_object_over_the_limit(s3: str, http: str) -> None:
    for url in (f"{s3}/photos/a.jpg", f"{http}/photos/a.jpg"):
        with pytest.raises(ImageError, match="more than 100 bytes"):
            RemoteFile(url).read(100, "a.jpg")


def test_a_folder_and_an_address_together(s3: str, run: Run, folder: Path, tmp_path: Path) -> None:
    assert run(folder, f"{s3}/photos/a.jpg", "--format", "coco,masks").exit_code == 0
    names = [image["path"] for image in read(tmp_path / "out" / "report.json")["images"]]
    assert names == sorted([*NAMES, f"s3/{s3.removeprefix('s3://')}/photos/a.jpg"])


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure"), ("https", "aiohttp", "http")],
)
def test_a_missing_package_is_named_with_its_extra(
    scheme: str, package: str, extra: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run(f"{scheme}://bucket/photos/")
    assert result.exit_code == 2
    assert f"{scheme}:// needs the package {package}" in result.output
    assert f"lasagna-assist[{extra}]" in result.output


def test_an_unknown_scheme(run: Run) -> None:
    result = run("ftp://host/photos/")
    assert result.exit_code == 2
    assert "ftp:// is none of s3://" in result.output
