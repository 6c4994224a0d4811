"""What `lasagna bench load` counts. It was run as a whole for docs/lab/benchmarks.md; that takes minutes."""

from pathlib import Path

import pytest
from PIL import Image

from lab.service.load import Timed, _row, small_photos


def test_photos_are_all_different(tmp_path: Path) -> None:
    files = small_photos(tmp_path, 40)
    assert len({path.read_bytes() for path in files}) == 40
    with Image.open(files[-1]) as last:
        assert last.size == (320, 240)


def test_a_failed_request_counts_and_has_no_time() -> None:
    timed = [Timed("open", second, "") for second in (1.0, 2.0, 6.0)]
    timed += [Timed("open", 100.0, "no prediction in time"), Timed("click", 0.5, "")]
    row = _row("alone", "open", timed)
    assert (row["count"], row["failed"], row["median_s"], row["worst_s"]) == (4, 1, 2.0, 6.0)
    assert row["p95_s"] == pytest.approx(5.6)
    assert _row("alone", "click", timed[:3])["median_s"] is None
