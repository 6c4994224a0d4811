"""Who is let in, and where the process may listen."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from backend._wsgi import bound
from backend.app import create_app
from backend.commands.serve import serve, worker
from backend.queue.services import free_port
from backend.web.access import check_exposure
from lasagna.errors import ConfigError
from lasagna.settings import Settings
from tests.backend.backend_helpers import wait_until

SECRETS = {
    "LASAGNA_BASIC_AUTH": "label:pass-word-1",
    "LASAGNA_WEBHOOK_SECRET": "hook-secret-2",
    "LASAGNA_LABEL_STUDIO_TOKEN": "token-3-with-more",
    "LASAGNA_REDIS_URL": "redis://user:redis-pass-4@127.0.0.1:1/0",
    "LASAGNA_LABEL_STUDIO_URL": "http://ann:url-pass-5@127.0.0.1:1",
}
WORDS = ("pass-word-1", "hook-secret-2", "token-3-with-more", "redis-pass-4", "url-pass-5")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "192.168.1.2", "203.0.113.5", "gpu.example.org", ""])
class TestExposure:
    def test_is_refused_without_a_password(self, host: str) -> None:
        with pytest.raises(ConfigError, match="LASAGNA_BASIC_AUTH=USER:PASSWORD"):
            check_exposure(Settings.load({}, host=host))

    @pytest.mark.parametrize("given", [{"LASAGNA_BASIC_AUTH": "a:b"}, {"LASAGNA_WITHOUT_PASSWORD": "yes"}], ids=str)
    def test_is_allowed_with_one_or_where_it_is_said(self, host: str, given: dict[str, str]) -> None:
        check_exposure(Settings.load(given, host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_password(host: str) -> None:
    check_exposure(Settings.load({}, host=host))


def test_serve_does_not_start_where_it_is_exposed() -> None:
    result = CliRunner().invoke(serve, ["--host", "0.0.0.0", "--redis-url", "redis://127.0.0.1:1/0"], env={})
    assert isinstance(result.exception, ConfigError)
    assert "can be reached from other machines" in str(result.exception)


@pytest.mark.parametrize(
    ("peer", "given", "code"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("", {}, 200),
        ("10.0.0.7", {}, 403),
        ("::ffff:10.0.0.7", {}, 403),
        ("10.0.0.7", {"LASAGNA_WITHOUT_PASSWORD": "yes"}, 200),
        ("10.0.0.7", {"LASAGNA_BASIC_AUTH": "a:b"}, 200),
    ],
)
def test_without_a_password_another_machine_is_refused(
    redis_url: str, peer: str, given: dict[str, str], code: int
) -> None:
    client = create_app(Settings.load({"LASAGNA_REDIS_URL": redis_url, **given})).test_client()
    assert client.get("/health", environ_base={"REMOTE_ADDR": peer}).status_code == code


@pytest.fixture
def gunicorn(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """A function that starts the application as any WSGI application is, on every address; returns its port."""
    processes = []

    def start(**given: str) -> int:
        port = free_port()
        environ = {**os.environ, "LASAGNA_REDIS_URL": redis_url, "LASAGNA_STATE_DIR": str(tmp_path), **given}
        command = [
            *(sys.executable, "-m", "gunicorn", "--worker-class", "backend.web.patient.PatientWorker"),
            *("--threads", "4", "--access-logfile", "-", "--bind", f"0.0.0.0:{port}", "backend._wsgi:app"),
        ]
        with (tmp_path / "log").open("w") as log:
            processes.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
        wait_until(lambda: _answer(f"http://127.0.0.1:{port}/health"), what="gunicorn")
        return port

    yield start
    for process in processes:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_gunicorn_alone_masks_and_checks(gunicorn: Callable[..., int], tmp_path: Path) -> None:
    """By an address of this machine that is not loopback."""
    port = gunicorn()
    assert _answer(f"http://127.0.0.1:{port}/health") == 200
    _answer(f"http://127.0.0.1:{port}/webhook?secret=mine1234", **{"User-Agent": "a\x1b[2Kb"})
    if not socket.gethostbyname(socket.gethostname()).startswith("127."):
        assert _answer(f"http://{socket.gethostbyname(socket.gethostname())}:{port}/health") == 403
    assert "mine1234" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_path_that_is_not_below_the_prefix_is_said(gunicorn: Callable[..., int]) -> None:
    """SCRIPT_NAME in the environment, and a proxy that takes the prefix away; or a header of a stranger."""
    port = gunicorn(SCRIPT_NAME="/lasagna")
    assert _answer(f"http://127.0.0.1:{port}/lasagna/health") == 200
    for path, headers in (("/health", {}), ("/lasagna/health", {"SCRIPT_NAME": "/elsewhere"})):
        answer = requests.get(f"http://127.0.0.1:{port}{path}", headers=headers, timeout=10)
        assert answer.status_code == 404
        assert "does not start with SCRIPT_NAME" in answer.json()["error"]
        assert "give Label Studio the address with that prefix" in answer.json()["error"]


def _answer(url: str, **headers: str) -> int | None:
    try:
        return requests.get(url, headers=headers, timeout=10).status_code
    except requests.RequestException:
        return None


def test_ipv6_is_listened_on_and_a_user_without_a_home_is_told(redis_url: str, tmp_path: Path) -> None:
    settings = Settings.load({"LASAGNA_REDIS_URL": redis_url}, host="::1", port=9191)
    assert bound(settings) == "[::1]:9191"
    code = "import os; os.setuid(54321); from lasagna.settings import state_folder as f; from lasagna.errors import *"
    code += "\ntry: f()\nexcept ConfigError as error: print(error)"
    environ = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_STATE_HOME")}
    environ.pop("LASAGNA_STATE_DIR", None)
    found = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    if os.getuid() == 0 and not found.stderr:
        assert "who has none: set HOME, or LASAGNA_STATE_DIR" in found.stdout


@pytest.mark.parametrize("name", ["LASAGNA_BASIC_AUTH", "LASAGNA_WEBHOOK_SECRET", "LASAGNA_LABEL_STUDIO_TOKEN"])
def test_a_new_line_behind_a_secret_is_refused_in_words(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.* a character that|{name}=") as caught:
        Settings.load({name: "label:studio-word\n"})
    assert "studio-word" not in str(caught.value)


@pytest.mark.parametrize("command", [serve, worker])
def test_print_config_shows_no_secret(command: object) -> None:
    result = CliRunner().invoke(command, ["--print-config"], env=SECRETS)  # type: ignore[arg-type]
    assert result.exit_code == 0
    assert "LASAGNA_BASIC_AUTH" in result.output
    assert "redis://***@127.0.0.1:1/0" in result.output
    assert [word for word in WORDS if word in result.output] == []


@pytest.mark.parametrize(
    ("host", "given", "code"),
    [
        ("127.0.0.1:9090", {}, 200),
        ("127.7.0.1", {}, 200),
        ("localhost:9090", {}, 200),
        ("[::1]:9090", {}, 200),
        ("2130706433:9090", {}, 200),
        ("134744072:9090", {}, 403),
        ("evil.example", {}, 403),
        ("evil.example:9090", {}, 403),
        ("127.0.0.1.evil.example", {}, 403),
        ("localhost.evil.example", {}, 403),
        ("[::1", {}, 403),
        ("lasagna.lan", {"LASAGNA_ALLOWED_HOSTS": "other, lasagna.lan"}, 200),
        ("lasagna.lan:80", {"LASAGNA_ALLOWED_HOSTS": "lasagna.lan:90"}, 403),
        ("evil.example", {"LASAGNA_WITHOUT_PASSWORD": "yes"}, 200),
    ],
)
def test_without_a_password_a_foreign_name_is_refused(
    redis_url: str, host: str, given: dict[str, str], code: int
) -> None:
    """A page whose name is made to mean 127.0.0.1 sends an Origin that equals its Host (DNS rebinding)."""
    client = create_app(Settings.load({"LASAGNA_REDIS_URL": redis_url, **given})).test_client()
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert client.get("/metrics", headers=headers).status_code == code
    assert client.get("/health", headers=headers).status_code == code
