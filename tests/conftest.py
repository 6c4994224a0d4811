"""Shared fixtures: real services, each started once per session on a free port with files of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.services import ensure_redis, release_redis
from lasagna.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Redis that belongs to this test session alone."""
    settings = Settings.load({"LASAGNA_STATE_DIR": str(tmp_path_factory.mktemp("redis"))})
    yield ensure_redis(settings)
    release_redis(settings)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of annotated photos beside the checkout (see its README.md); skips where it is not there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the annotated photos in {folder}")
    return folder


@pytest.fixture(scope="session")
def photos() -> dict[str, Path]:
    """Real photos that come with scikit-image, by what they show: person, cat, cup, motorcycle, rocket."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    names = {
        "person": "astronaut.png",
        "cat": "chelsea.png",
        "cup": "coffee.png",
        "motorcycle": "motorcycle_left.png",
        "rocket": "rocket.jpg",
    }
    return {name: folder / file for name, file in names.items()}
