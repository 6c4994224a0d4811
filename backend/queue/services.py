"""Child processes that never outlive us, and the folder and ports that they take.

What always holds: a child started by `Service` ends when we end, also when we are killed (Linux: PR_SET_PDEATHSIG);
`stop` waits for it.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lasagna.errors import ServiceError
from lasagna.settings import Settings, state_folder

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def state_dir(settings: Settings) -> Path:
    """Our folder for files that outlive a process (`LASAGNA_STATE_DIR`), made if missing, for its owner alone."""
    folder = state_folder(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ServiceError(
            f"cannot make the state folder {folder} ({error}); set LASAGNA_STATE_DIR to another"
        ) from error
    return folder.resolve()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `host:port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


class Service:
    """One child process in a process group of its own, with its output in a log file.

    The group keeps Ctrl-C in the terminal from reaching it: we end our children ourselves, in order. Start it from the
    main thread, because the kernel ties the child's life to the thread that started it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ):
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        ours = os.getpid()

        def die_with_parent() -> None:
            if _LIBC is not None:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                if os.getppid() != ours:  # we died before the call above
                    os._exit(1)

        with log.open("ab") as output:
            try:
                self.process = subprocess.Popen(
                    [str(part) for part in command],
                    env=None if env is None else dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                    pass_fds=pass_fds,
                )
            except OSError as error:
                raise ServiceError(f"cannot start {name} ({command[0]}): {error}") from error

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def check(self) -> None:
        """Raises ServiceError with the end of the log if the process has ended."""
        if not self.running:
            raise ServiceError(
                f"{self.name} ended with exit code {self.process.returncode}; its log is {self.log}, which ends:\n"
                + tail(self.log)
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Waits until `ready()` is true; raises ServiceError if the process ends or `seconds` pass first."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{self.name} did not get ready in {seconds:.0f} s; its log is {self.log}, which ends:\n"
                    + tail(self.log)
                )
            time.sleep(0.1)

    def stop(self, seconds: float = 10.0) -> None:
        """Ends the whole process group: SIGTERM, and SIGKILL after `seconds`. Does nothing if it has ended."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a text file, indented, for an error message."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return "    (no log)"
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:]) or "    (empty)"
