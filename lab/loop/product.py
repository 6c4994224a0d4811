"""The product's processes, for what measures them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from backend.demo.parts import Demo
from backend.queue.services import free_port
from lasagna.settings import Settings


@contextmanager
def running_product(model: str | None, out: Path | None, console: Console, *, instant: bool = True) -> Iterator[Demo]:
    """The processes of the product, in a state folder of their own: in `out`, else one that is removed.

    Args:
        instant: Whether projects learn at once.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if out is None else out / "state"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["LASAGNA_TRAIN_WHEN"] = "by hand"  # of the processes that are started: a round is trained once
        os.environ["LASAGNA_INSTANT"] = "on" if instant else "off"
        os.environ["LASAGNA_GUESS_UNKNOWN"] = "yes"  # what is measured is what the model makes of every label
        settings = Settings.load(model=model, state_dir=str(folder.resolve()))
        yield stack.enter_context(Demo(settings, folder.resolve(), console, free_port()))
