"""`lasagna annotate --engine ray` writes what the local engine writes, and goes on where it was stopped."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lasagna.annotate import pipeline as batch
from lasagna.annotate import ray_engine
from lasagna.annotate.export import Export
from lasagna.annotate.folder import find_images
from lasagna.annotate.pipeline import PieceEncoder, Reader
from lasagna.annotate.request import Asked
from lasagna.annotate.results import Results
from lasagna.masks.segmentation import ClassAnswer, Segmentation

from .made import NAMES, Run, computed, picture, read
from .test_sources import archive, content

ray = pytest.importorskip("ray", reason="Ray is not installed: type `make setup`", exc_type=ImportError)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray's own options, in its own code
]

FORMATS = ("--format", "label-studio,coco,masks,instances,yolo,voc")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, whatever else of it runs here, with three processors: two models and what is around."""
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def photos(folder: Path) -> Path:
    """The six photos, one of them twice, and two that cannot be read."""
    for i in range(5):
        picture(30 + i).save(folder / f"more{i}.png")
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:500])
    (folder / "empty.png").write_bytes(b"")
    return folder


def written(out: Path) -> dict[str, Any]:
    """Every file of the output, without the seconds that something took."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_file() and not name.startswith(".results") and "images/" not in name:
            found[name] = path.read_bytes()
    found["gallery.html"] = re.sub(rb"\d+\.\d\d s\b", b"", found["gallery.html"])
    report = json.loads(found["report.json"])
    for row in [report, *report["images"]]:
        row.pop("seconds")
    return {**found, "report.json": report}


def test_the_same_files_and_on_from_the_shards_of_a_stopped_run(
    cluster: None, one_thread: None, run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(photos, *FORMATS, "--batch-size", "2", out=tmp_path / "local").exit_code == 1
    on_ray = (photos, *FORMATS, "--batch-size", "2", "--engine", "ray", "--workers", "2")
    with monkeypatch.context() as patch:

        def stopped(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(Export, "finish", stopped)
        assert run(*on_ray).exit_code == 130
    indices = list((tmp_path / "out" / ".results").glob("*/shards/*/*.index.json"))
    batches = {key: place for path in indices for key, place in read(path).items()}
    assert sum(place["lines"] for place in batches.values()) == len(NAMES) + 7
    assert sum(place["failed"] for place in batches.values()) == 2

    (photos / "cut.jpg").unlink()
    (photos / "empty.png").unlink()
    assert run(photos, *FORMATS, "--batch-size", "2", out=tmp_path / "local").exit_code == 0
    result = run(*on_ray)
    assert result.exit_code == 0, result.output
    assert "batches are in shards of an earlier run" in " ".join(result.stderr.split())
    assert computed(result) == 0
    found, expected = written(tmp_path / "out"), written(tmp_path / "local")
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == set()
    assert not list((tmp_path / "out" / ".results").glob("*/shards")), "shards go when the output is complete"


def test_a_batch_of_large_photos_goes_to_the_model_in_parts(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "BATCH_PIXELS", 4000)  # two of 48 x 32
    asked: list[int] = []

    class Model:
        def segment_batch(self, images: list[Any], *_: Any, **__: Any) -> list[Segmentation]:
            asked.append(len(images))
            return [Segmentation((32, 48), (ClassAnswer("sky", 0.1, None),)) for _ in images]

    results = Results(tmp_path / "results")
    run = SimpleNamespace(asked=Asked([]), encoder=lambda _: PieceEncoder(results, lambda *_: {}), load_model=Model)
    files = find_images([str(path) for path in sorted(photos.glob("more*.png"))]).files
    read_ones = [Reader(results, 10**6, 10**6)(file) for file in files]
    row = {"batch": ray_engine._Batch("key", list(files), read_ones)}
    done = ray_engine._Model(run, results)(row)["batch"]  # type: ignore[arg-type]
    assert asked == [2, 2, 1]
    assert done.computed == {0, 1, 2, 3, 4}
    assert all(one.record is not None for one in done.read)


def test_what_cannot_be_started(cluster: None, run: Run, photos: Path, tmp_path: Path) -> None:
    many = run(photos, "--engine", "ray", "--workers", "3")
    assert many.exit_code == 2
    assert "--workers 3 is more than the Ray cluster has room for: 3 processors" in many.output
    packed = run(archive("tar.gz", tmp_path / "x.tar.gz", content(photos)), "--engine", "ray")
    assert packed.exit_code == 2
    assert "compressed as a whole" in packed.output
    shutil.rmtree(tmp_path / "out")


def test_without_ray(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run(folder, "--engine", "ray")
    assert result.exit_code == 2
    assert "lasagna-assist[ray]" in result.output
