"""Shared fixtures: real services, each started once per process of the tests, on a free port with files of its own.

What set-up has not installed (no Label Studio, no Chromium) is an error under CI, and elsewhere a skip that names what
to type. `make test` runs the tests in several processes: a file stays in one, and so does all of Label Studio.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from backend.demo.local_label_studio import LocalLabelStudio
from backend.queue.own_redis import ensure_redis, release_redis
from backend.queue.services import Service, free_port, port_is_free
from lab.editor import open_chromium
from lasagna.environment import usable_cores
from lasagna.errors import ServiceError
from lasagna.settings import Settings, cache_folder

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

ROOT = Path(__file__).resolve().parent.parent
MOST_PROCESSES = 4
"""Of `-n auto`: Label Studio's tests, which stay together, take as long as a quarter of all."""

# One thread for each process, before any of them loads torch: the number of threads changes how sums are rounded, and
# the processes of the tests share the cores already.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return min(MOST_PROCESSES, usable_cores())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives whole files to the processes, and whole groups where tests have the mark `xdist_group`."""
    from xdist.scheduler import LoadGroupScheduling

    class FileScheduling(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return super()._split_scope(nodeid).partition("::")[0]

    return FileScheduling(config, log)


def pytest_configure() -> None:
    """Ctrl-C reaches the processes that tests start, also where this one runs in the background: a shell starts those
    with SIGINT ignored, and children would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that the processes end at about the same time."""
    for item in items:
        if item.get_closest_marker("label_studio") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("label_studio"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.get_closest_marker("label_studio"), item.path not in slow))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshot", metavar="FILE", help="keep the picture of the editor that test_editor.py takes")
    parser.addoption("--pictures", metavar="FOLDER", help="keep the pictures that test_editor_forms.py takes")
    parser.addoption("--examples", type=int, help="damaged requests per test of test_fuzz.py, in place of 150")
    parser.addoption("--postgres", action="store_true", help="also start Label Studio on a real PostgreSQL (a minute)")


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps every test away from the user's own state folder, with its registry of versions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Redis that belongs to this test session alone."""
    settings = Settings.load({"LASAGNA_STATE_DIR": str(tmp_path_factory.mktemp("redis"))})
    yield ensure_redis(settings)
    release_redis(settings)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """A function from a path to that file or folder in `shared` beside the checkout (no part of the repository).

    The test is skipped where it is not there, with the same words for all, so that the summary has one line of them.
    """

    def find(path: str) -> Path:
        found = ROOT.parent / "shared" / path
        if not found.exists():
            pytest.skip(
                "needs ../shared, which is not beside this checkout: annotated photos, the paper's text, what the "
                "released code computed, what Label Studio sent"
            )
        return found

    return find


@pytest.fixture(scope="session")
def shared_data(shared: Callable[[str], Path]) -> Path:
    """Folder of annotated photos: LASAGNA_DATA, else beside the checkout."""
    given = os.environ.get("LASAGNA_DATA")
    return Path(given) if given else shared("data")


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


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one data set, `squares`, in the folder layout: squares of colour on grey, a void frame."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "squares"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.json").write_text('{"classes": ["backdrop", "red", "blue"], "background_index": 0}')
    rng = np.random.default_rng(0)
    for i in range(4):
        image, mask = np.full((80, 100, 3), 120, np.uint8), np.zeros((80, 100), np.uint8)
        for index, colour in ((1, (220, 20, 20)), (2, (20, 20, 220))):
            if i % 2 and index == 2:
                continue
            top, left = rng.integers(4, 36), rng.integers(4, 56)
            image[top : top + 36, left : left + 36], mask[top : top + 36, left : left + 36] = colour, index
        mask[:2] = 255
        Image.fromarray(image).save(folder / "images" / f"{i}.jpg", quality=95)
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    for split in ("train", "val"):
        (folder / f"{split}.txt").write_text("0\n1\n2\n3\n")
    return root


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny checkpoint with random weights: the code of every model, about half of the classes present."""
    from lasagna import Lasagna

    folder = tmp_path_factory.mktemp("checkpoint") / "random"
    Lasagna.random(seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def installed_label_studio() -> Settings:
    """Settings with which `LocalLabelStudio` finds its program; a skip, or an error under CI, if it is not there."""
    settings = Settings.load()
    if not (cache_folder(settings) / "label-studio" / "venv").is_dir():
        _missing(f"Label Studio is not installed in {cache_folder(settings)}: type `make setup`")
    return settings


@pytest.fixture(scope="session")
def label_studio(
    installed_label_studio: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalLabelStudio]:
    """A running Label Studio with an empty database; `label_studio.api()` is a client of it. It refuses ML backends at
    127.0.0.2, as one that nobody set up refuses every private address."""
    environ = {
        "ML_BLOCK_LOCAL_IP": "true",
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        "USER_ADDITIONAL_BANNED_SUBNETS": "127.0.0.2/32",
    }
    folder = tmp_path_factory.mktemp("label-studio")
    with LocalLabelStudio(installed_label_studio, folder, environ=environ) as running:
        yield running.wait()


@dataclass(frozen=True)
class RunningBackend:
    """A web process and a worker with a model: what `lasagna serve` and `lasagna worker` start."""

    url: str
    model_version: str
    redis_url: str
    web: Service
    worker: Service


@pytest.fixture(scope="session")
def start_backend(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], RunningBackend]]:
    """A function that starts `lasagna serve` and `lasagna worker` with a model, on a Redis of their own (a worker takes
    any job of its Redis, whatever the model); Label Studio's address comes with /setup."""
    from backend.queue.store import Store, connect

    services: list[Service] = []
    stores: list[Settings] = []

    def start(model: str) -> RunningBackend:
        folder, port = tmp_path_factory.mktemp("backend"), free_port()
        stores.append(Settings.load({"LASAGNA_STATE_DIR": str(folder)}))
        redis_url = ensure_redis(stores[-1])
        env = {name: value for name, value in os.environ.items() if not name.startswith("LASAGNA_")} | {
            "LASAGNA_REDIS_URL": redis_url,
            "LASAGNA_PORT": str(port),
            "LASAGNA_MODEL": model,
            "LASAGNA_STATE_DIR": str(folder),
        }
        for name in ("serve", "worker"):
            program = [sys.executable, "-c", "from lasagna.commands.cli import main; main()", name]
            services.append(Service(f"lasagna {name}", program, env=env, log=folder / f"{name}.log"))
        web, worker = services[-2:]
        store = Store(connect(redis_url))
        web.wait_until(lambda: not port_is_free(port), 300)
        worker.wait_until(lambda: (store.model() or {}).get("pid") == worker.process.pid, 600)
        return RunningBackend(f"http://127.0.0.1:{port}", (store.model() or {})["version"], redis_url, web, worker)

    yield start
    for service in reversed(services):
        service.stop()
    for settings in stores:
        release_redis(settings)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Chrome"]:
    """A real Chromium without a window, driven by selenium; it reaches 127.0.0.1 alone."""
    try:
        browser = open_chromium(tmp_path_factory.mktemp("chromium"))
    except ServiceError as error:
        _missing(str(error))
    yield browser
    browser.quit()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that are started, whatever this one has: sums are rounded by the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def serving() -> Iterator[Callable[[Any], str]]:
    """A function that runs an HTTP server (of http.server or werkzeug) until the test ends, and returns its address."""
    with ExitStack() as stack:

        def serve(server: Any) -> str:
            thread = threading.Thread(target=server.serve_forever)
            stack.callback(server.server_close)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            thread.start()
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


@pytest.fixture
def eventually():
    """A function that waits until a condition is true and returns what it returned."""

    def wait(condition, seconds: float = 30.0, what: str = "it"):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
            time.sleep(0.1)
        return found

    return wait


def _missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
