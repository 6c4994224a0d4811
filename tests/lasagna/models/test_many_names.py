"""Many names on a large photo, answered for real in a process whose memory is measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab.bench.peer_models import write_model
from lasagna.checkpoint.folder import Calibration, write_calibration

NAMES = [f"name {number}" for number in range(60)]

_MEASURED = """
import json, sys
from pathlib import Path
import numpy as np
from lasagna.models.loading import load_model

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) // 1024

folder, exclusive, *names = sys.argv[1:]
model = load_model(folder, device="cpu")
pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
model.segment(pixels, names[:2])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
answer = model.segment(pixels.repeat(50, 0).repeat(50, 1), names, exclusive=exclusive == "exclusive")
print(json.dumps({"MB": peak() - before, "present": len(answer.present), "size": answer.size}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "way"),
    [("sam3", ""), ("clipseg", "exclusive"), ("eomt", ""), ("mask2former", "")],
)
def test_memory_is_that_of_the_masks(kind: str, way: str, tmp_path: Path) -> None:
    """All are present, so that all are drawn. Maps of all of them would take 720 MB once, their masks take 180 MB."""
    folder = write_model(kind, tmp_path / kind, names=NAMES)
    write_calibration(folder, Calibration(offset=-30.0))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(folder), way, *NAMES], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["present"], found["size"]) == (60, [1500, 2000])
    assert 150 < found["MB"] < 550
