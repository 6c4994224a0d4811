"""What the processes log: one JSON object per line, with ids, without secrets."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lasagna import logs
from lasagna.logs import keep_secret, logged, mask, start_logging
from lasagna.settings import Settings
from tests.backend.backend_helpers import TOKEN, make_jwt

Lines = Callable[[], list[dict[str, Any]]]
logger = logging.getLogger("backend.test")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., io.StringIO]]:
    """A function that starts logging with settings, into a text that it returns."""
    monkeypatch.setattr(logs, "_secrets", set())
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def begin(**environ: str) -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        root.handlers = []  # force=True would close pytest's own
        start_logging(Settings.load(environ))
        return stream

    yield begin
    root.handlers, root.level = before, level


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object(start: Any) -> None:
    stream = start(LASAGNA_LOG_FORMAT="json")
    with logged(project="3", job="5b2c"):
        with logged(task=73):
            logger.warning("task %s: %s", 73, "two\nlines, a \ud800 and \u2713")
        logger.info("one task")
    logger.info("outside")
    first, second, third = lines(stream)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "WARNING",
        "logger": "backend.test",
        "message": "task 73: two\nlines, a \ud800 and \u2713",
        "project": "3",
        "job": "5b2c",
        "task": "73",
    }
    assert "task" not in second
    assert second["job"] == "5b2c"
    assert set(third) == {"time", "level", "logger", "message"}


def test_an_error_keeps_its_traceback_in_the_line(start: Any) -> None:
    stream = start(LASAGNA_LOG_FORMAT="json")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it failed")
    [line] = lines(stream)
    assert line["message"] == "it failed"
    assert line["error"].startswith("Traceback")
    assert line["error"].endswith("ValueError: broken")


SECRETS = [
    ("a token of the settings", TOKEN),
    ("the password of the settings", "pass:word"),
    ("user and password", "label:pass:word"),
    ("Redis's password", "hidden-redis"),
    ("a JWT", make_jwt("refresh", 2e9)),
    ("a header", "Token 0123456789abcdef0123456789abcdef01234567"),
    ("credentials in an address", "https://me:mine1234@host/path"),
    ("the secret of a webhook", "/webhook?secret=hook-secret-2"),
    ("the same in an address", "https://host/?q=with%20space"),
    ("a presigned address", "https://s3/x.png?X-Amz-Signature=deadbeef&X-Amz-Credential=AKIA1234"),
    ("a token that came with /setup", "given-by-setup"),
    ("a password with a slash", "redis://:mine1234/w+x=@h:1/0"),
    ("a password in a query", "redis://h/0?password=mine1234&db=1"),
    ("a token in a query", "https://h/?token=mine1234"),
    ("a key in a query", "https://h/x?api_key=mine1234"),
    ("the password of the settings in a header", "Authorization: bGFiZWw6cGFzczp3b3Jk"),
    ("it in an address", "label:pass%3Aword"),
]


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(("name", "text"), SECRETS, ids=[name for name, _ in SECRETS])
def test_secrets_are_masked(start: Any, log_format: str, name: str, text: str) -> None:
    stream = start(
        LASAGNA_LOG_FORMAT=log_format,
        LASAGNA_LABEL_STUDIO_TOKEN=TOKEN,
        LASAGNA_BASIC_AUTH="label:pass:word",
        LASAGNA_WEBHOOK_SECRET="with space",
        LASAGNA_REDIS_URL="redis://:hidden-redis@127.0.0.1:1/0",
    )
    keep_secret("given-by-setup")
    logger.info("sent %s", text)
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logger.exception("failed")
    said = stream.getvalue()
    assert "***" in said
    parts = [TOKEN, "pass:word", "hidden-redis", "eyJ", "0123456789abcdef", "mine1234", "deadbeef", "AKIA", "by-setup"]
    parts += ["hook-secret", "with", "bGFiZWw6", "pass%3A"]
    assert [part for part in parts if part in said] == []


@pytest.mark.parametrize(
    "text", ["a\n2026-11-30 12:00:00 INFO    forged", "a\r\x1b[2Kforged", "a\u2028forged", "\x9b2Ka"]
)
def test_no_line_can_be_forged(start: Any, text: str) -> None:
    stream = start()
    logger.info("sent %s", text)
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logger.exception("failed")
    said = stream.getvalue()
    assert [
        line for line in said.splitlines() if line.endswith("forged") and line[:1] != " " and "sent" not in line
    ] == []
    assert not [c for c in said if not c.isprintable() and c != "\n"]


@pytest.mark.parametrize(
    "text", ["token of ann@example.org", "http://127.0.0.1:8080/tasks/1?x=1", "Basic Auth is off", "3 Token kinds"]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask(text) == text
