"""`lasagna` commands in processes of their own, without the seconds of processor time that each needs for its imports.

What always holds: every command runs in a fork of one process that has imported the modules below and has computed
nothing, with an environment, an output and limits of its own; it can be killed like any process, and no state of the
tests reaches it. What a test is about the start itself, or about what is imported, starts Python instead.
"""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# In this order: the trainer sees to it that torchvision can be imported.
IMPORTED = (
    "pytest",
    "training.engine.trainer",
    "backend.commands.train",
    "backend.loop.job",
    "backend.worker.process",
    "segment_anything",
    "timm",
    "torch.utils.tensorboard",
)

forks = multiprocessing.get_context("forkserver")
"""`forks.Process` runs any function in such a fork."""
forks.set_forkserver_preload(list(IMPORTED))


class ForkedCommand:
    """A command that runs. It has what the tests need of `subprocess.Popen`.

    Args:
        words: The command without its first word, `lasagna`.
        stdout: File that its output is appended to.
        stderr: File for its errors; those go where the output goes if it is left out.
        environ: All of its environment.
        largest_file: Bytes that no file may exceed: past them the system refuses to write, as a full disk does.
        before: A function of a module, called in the new process before the command; what it patches is patched there.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        stdout: Path,
        *,
        environ: Mapping[str, str],
        stderr: Path | None = None,
        largest_file: int | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        self.args = ["lasagna", *map(str, words)]
        outputs = (stdout, stderr or stdout)
        for path in outputs:
            path.touch()
        self._process = forks.Process(
            target=_run, args=(self.args, outputs, dict(environ), largest_file, before), name=" ".join(self.args)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass(frozen=True)
class Done:
    """What a command that has ended left."""

    returncode: int
    stdout: str
    stderr: str


def run_forked(
    words: Sequence[str | Path],
    folder: Path,
    *,
    environ: Mapping[str, str] | None = None,
    largest_file: int | None = None,
    before: Callable[[], object] | None = None,
    check: bool = False,
) -> Done:
    """Runs a command to its end, with files for its output in a folder; the environment is ours if it is left out.

    Raises:
        AssertionError: `check` is set and the command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stdout, stderr = folder / "stdout", folder / "stderr"
    for path in (stdout, stderr):
        path.unlink(missing_ok=True)
    given = os.environ if environ is None else environ
    command = ForkedCommand(words, stdout, stderr=stderr, environ=given, largest_file=largest_file, before=before)
    done = Done(command.wait(600), stdout.read_text(), stderr.read_text())
    assert not check or done.returncode == 0, done.stderr
    return done


def _run(
    arguments: list[str],
    outputs: tuple[Path, Path],
    environ: dict[str, str],
    largest_file: int | None,
    before: Callable[[], object] | None,
) -> None:
    for number, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = arguments
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if before is not None:
        before()
    from lasagna.commands.cli import main

    main(prog_name="lasagna")
