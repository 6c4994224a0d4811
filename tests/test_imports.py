"""Which rooms come without torch, and how little a command line needs. Who may import whom is in `.importlinter`."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH_FREE = (
    "lasagna.annotate",
    "lasagna.commands",
    "lasagna.formats",
    "lasagna.labels",
    "lasagna.masks",
    "lasagna.prompt",
    "backend.commands",
    "backend.demo",
    "backend.doctor",
    "backend.effort",
    "backend.queue",
    "backend.registry",
    "backend.studio",
    "backend.web",
    "backend.app",
    "backend.loop.process",  # until its first job
    "backend.loop.trainings",
    "backend.worker.rq_worker",
)


def modules_of(room: str) -> list[str]:
    folder = ROOT / room.replace(".", "/")
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]


@pytest.mark.slow
@pytest.mark.parametrize("room", TORCH_FREE)
def test_room_imports_no_torch(room: str) -> None:
    names = modules_of(room)
    assert names
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        sys.exit(f'{name} imports torch')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("megabytes", [200, 300, 400])
@pytest.mark.parametrize("arguments", [["annotate", "--help"], ["models", "list"]], ids=" ".join)
def test_little_address_space_is_said_in_words(arguments: list[str], megabytes: int) -> None:
    """Whatever library it is that does not find room."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    command = [sys.executable, "-m", "lasagna", *arguments]
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # else its threads alone fill it
    found = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=120, env=environ)
    assert "Traceback" not in found.stderr
    assert found.returncode == 0 or "there is not enough memory; see `ulimit -a`" in found.stderr
