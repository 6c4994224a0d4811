"""Progress in a log file: a line at every twentieth of the work, and every minute."""

import io
import re
import time

import pytest
from rich.console import Console

from lasagna import progress
from lasagna.progress import progress_bar


def lines(text: io.StringIO) -> list[str]:
    return text.getvalue().splitlines()


@pytest.mark.parametrize(("total", "expected"), [(10_000, 20), (100, 20), (3, 3), (1, 1)])
def test_a_line_at_every_twentieth(total: int, expected: int) -> None:
    log = io.StringIO()
    with progress_bar(Console(file=log), "Annotating", total) as advance:
        for i in range(total):
            advance("2 failed" if i > total // 2 else "")
    assert len(lines(log)) == expected
    assert re.fullmatch(rf"Annotating: {total} of {total} \(100 %\), \d+\.\d/s, took 0 s(, 2 failed)?", lines(log)[-1])
    if total == 10_000:
        assert re.fullmatch(r"Annotating: 500 of 10000 \(5 %\), \d+\.\d/s, about \d+ s left", lines(log)[0])


def test_a_line_every_minute_though_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    log = io.StringIO()
    with progress_bar(Console(file=log), "Annotating", 1000) as advance:
        advance()
        deadline = time.monotonic() + 30
        while len(lines(log)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert lines(log)[0].startswith("Annotating: 1 of 1000 (0 %), ")


def test_what_was_done_when_it_was_stopped_is_said() -> None:
    log = io.StringIO()
    bar = progress_bar(Console(file=log), "Annotating", 1000)
    bar.__enter__()()
    assert not bar.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert [line.partition(",")[0] for line in lines(log)] == ["Annotating: 1 of 1000 (0 %)"]


def test_nothing_to_do() -> None:
    log = io.StringIO()
    with progress_bar(Console(file=log), "Annotating", 0):
        pass
    assert lines(log) == ["Annotating: 0 of 0"]


def test_a_terminal_shows_a_bar() -> None:
    screen = io.StringIO()
    with progress_bar(Console(file=screen, force_terminal=True, width=120), "Annotating", 2) as advance:
        advance()
        advance("1 failed")
    assert "2/2" in screen.getvalue()
    assert "1 failed" in screen.getvalue()


def test_a_reason_in_a_terminal_is_text() -> None:
    """Also where it looks like markup: a label, a field, an address."""
    terminal = io.StringIO()
    with progress_bar(Console(file=terminal, force_terminal=True, width=200), "Pre-labelling", 2) as advance:
        advance("task 3: the label [/b] is not there")
        advance("task 4: $pages[red].url")
    assert "$pages[red].url" in terminal.getvalue()
