"""`lasagna bench`: the performance figures, as a table and as JSON.

Every benchmark is one sub-command that yields rows of figures; `report` prints them, together with the machine they
were measured on. All are in the entry-point group `lasagna.benchmarks` (ours: the package `lasagna.benchmarks`), where
other packages register theirs. What always holds: ways
of doing the same thing are timed side by side in one process, interleaved, each after one untimed run, and the figure
is the median of the repeats; what is timed is checked for being right in the same run.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import skimage.data
from rich.console import Console
from rich.table import Table

from lab.bench.random_weights import random_lasagna
from lab.names import asked_everything
from lasagna.commands.groups import EntryPointGroup
from lasagna.environment import describe_environment
from lasagna.errors import DataError
from lasagna.masks.image import load_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lasagna.assistant.lasagna import Lasagna

Row = dict[str, Any]

_COLLECTED = "lab.bench.command.collected"
"""Where `bench all` gathers what `report` is given."""

_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush, banner, blanket, bridge, cardboard, counter, curtain, door, wooden
floor, flower, fruit, gravel, house, light, mirror, net, pillow, platform, playing field, railroad, river, road,
roof, sand, sea, shelf, snow, stairs, tent, towel, brick wall, stone wall, tiled wall, wooden wall, water,
window blind, window, tree, fence, ceiling, sky, cabinet, table, floor, pavement, mountain, grass, dirt, paper,
food, building, rock, wall, rug
"""
CLASS_NAMES = tuple(" ".join(name.split()) for name in _NAMES.split(","))
"""The 133 classes of COCO panoptic (things and merged stuff), the class list of the paper."""


class Numbers(click.ParamType):
    """Whole numbers from `least` on, separated by commas."""

    name = "N,N,..."

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 20,133", param, ctx)
        if min(numbers) < self.least:
            self.fail(f"{value!r}: every number is at least {self.least}", param, ctx)
        return numbers


class Dtypes(click.ParamType):
    """Names of number formats, separated by commas."""

    name = "DTYPE,..."
    known = ("float32", "bfloat16", "float16")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = value if isinstance(value, tuple) else tuple(str(value).split(","))
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}", param, ctx)
        return names


@dataclass(frozen=True)
class ModelOptions:
    """What `common_options` gives a benchmark; the help of the options says what each is."""

    model_name: str
    random_weights: str | None
    dialect: str | None
    device: str
    dtypes: tuple[str, ...]
    repeats: int
    as_json: bool
    out: Path | None

    def load(self, dtype: str, classes: int = 500, dialect: str | None = None) -> "Lasagna":
        """The model; a random one knows the first `classes` of `sample_classes`, in the dialect that is given, else the
        one of --dialect."""
        from lasagna.assistant.lasagna import Lasagna

        if self.random_weights is None:
            if self.dialect is not None:
                raise click.UsageError("--dialect is for --random-weights; a checkpoint has its own")
            return asked_everything(Lasagna.from_pretrained(self.model_name, device=self.device, dtype=dtype))
        wording = dialect or self.dialect or "released"
        return random_lasagna(self.random_weights, wording, sample_classes(classes), self.device, dtype)


def common_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options of a benchmark of a model: which one (--model, --random-weights, --dialect), --device, --dtype,
    --repeats, --json, --out. The function gets them as `chosen`, a `ModelOptions`."""

    @wraps(function)
    def command(**given: Any) -> None:
        chosen = ModelOptions(**{field.name: given.pop(field.name) for field in fields(ModelOptions)})
        function(chosen=chosen, **given)

    for option in reversed(
        (
            click.option(
                "--model", "model_name", default="nano", show_default=True, help="Shipped name, folder, hub id."
            ),
            click.option(
                "--random-weights",
                metavar="SHAPE",
                help="Instead of --model: lasagna-7b, lasagna-13b, lasagna-7b-tiny or a config.json, without weights.",
            ),
            click.option(
                "--dialect",
                type=click.Choice(["paper", "released"]),
                help="Of random weights. [default: released; decode: both]",
            ),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
            click.option("--dtype", "dtypes", type=Dtypes(), default="float32", show_default=True),
            click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Median of so many."),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table."),
            click.option(
                "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too."
            ),
        )
    ):
        command = option(command)
    return command


def time_interleaved(ways: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds on the clock of each way of doing something; see `both_times`."""
    return {name: wall for name, (wall, _) in both_times(ways, repeats, device).items()}


def both_times(ways: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, tuple[float, float]]:
    """Median seconds of each way of doing something: on the clock, and of this process's processors.

    The second says what the work takes even where other work holds the processors; threads count apart, waiting
    threads may too. All ways run once untimed, then in turn, `repeats` rounds: what else the machine does meets all of
    them alike.
    """
    import torch

    def run(way: Callable[[], Any]) -> tuple[float, float]:
        began, worked = time.perf_counter(), time.process_time()
        way()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began, time.process_time() - worked

    for way in ways.values():
        run(way)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(run(way))
    medians: dict[str, tuple[float, float]] = {}
    for name, values in seconds.items():
        wall, processor = zip(*values, strict=True)
        medians[name] = (statistics.median(wall), statistics.median(processor))
    return medians


def report(name: str, setting: Row, rows: Sequence[Row], *, device: str, as_json: bool, out: Path | None) -> None:
    """Prints a benchmark's rows, as a table or as one JSON object {benchmark, setting, environment, rows}.

    Args:
        name: The sub-command.
        setting: What holds for all rows (model, repeats, ...).
        rows: At least one, all with the same keys; each is a column of the table, or a line where they are many.
        device: That was measured.
    """
    environment = describe_environment(device)
    result = {"benchmark": name, "setting": setting, "environment": environment, "rows": list(rows)}
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    if out is not None:
        write_figures(out, text)
    collected = click.get_current_context().meta.get(_COLLECTED) if click.get_current_context(silent=True) else None
    if collected is not None:
        collected.append(result)
    if as_json:
        if collected is None:
            click.echo(text)
        return
    # Usually a figure per line and a column per row: a terminal of 80 characters has no room for so many figures.
    lines = [[heading.replace("_", " "), *(_figure(row[heading]) for row in rows)] for heading in rows[0]]
    if len(rows) > len(lines):
        lines = [list(line) for line in zip(*lines, strict=True)]
    table = Table(show_header=False)
    for i in range(len(lines[0])):
        table.add_column(justify="right" if i else "left")
    for line in lines:
        table.add_row(*line)
    console = Console()
    # Not the table's title: that would be broken at the table's width.
    console.print(f"bench {name}: " + ", ".join(f"{key} {value}" for key, value in setting.items()))
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in environment.items()), style="dim")


def write_figures(out: Path, text: str) -> None:
    """Writes a file. Raises DataError where it cannot be written."""
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: the figures cannot be written there ({error.strerror})") from error


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def sample_images(count: int) -> "list[NDArray[np.uint8]]":
    """`count` real photos, uint8 (H, W, 3): those that scikit-image ships, then the same shifted sideways."""
    folder = Path(skimage.data.__file__).parent
    photos = [np.asarray(load_image(folder / name)) for name in ("astronaut.png", "coffee.png", "chelsea.png")]
    return [np.roll(photos[i % 3], 24 * (i // 3), axis=1) for i in range(count)]


def sample_classes(count: int) -> list[str]:
    """`count` different class names; beyond the 133 of COCO panoptic they are numbered."""
    rounds = range(1, -(-count // len(CLASS_NAMES)) + 1)
    return [name if i == 1 else f"{name} {i}" for i in rounds for name in CLASS_NAMES][:count]


@click.group(
    cls=EntryPointGroup,
    entry_point_group="lasagna.benchmarks",
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@click.pass_context
def bench(context: click.Context) -> None:
    """Measure how fast the model is on this machine, and that the fast way gives the right result.

    Without a COMMAND: `all`.
    """
    if context.invoked_subcommand is None:
        context.invoke(all_benchmarks)


LONG = ("features", "faults", "hour", "load", "prelabel", "submit", "soak", "corpus")
"""Benchmarks that `all` leaves out unless it is told otherwise."""


@bench.command("all")
@click.option(
    "--skip",
    default=",".join(LONG),
    show_default=True,
    help="Benchmarks to leave out; features trains 7B shapes (60 GB), faults, hour, load, prelabel, submit run Label "
    "Studio, soak and corpus annotate a thousand photos.",
)
@common_options
@click.pass_context
def all_benchmarks(context: click.Context, skip: str, chosen: ModelOptions) -> None:
    """Run every benchmark that needs no option; each takes those of the options that it has. --json prints a list.

    `hour` and `faults` take an hour or so each: leave them out with --skip hour,faults.
    """
    assert isinstance(context.parent, click.Context)
    group = context.parent.command
    assert isinstance(group, EntryPointGroup)
    commands = {name: group.get_command(context, name) for name in group.list_commands(context) if name != "all"}
    unknown = {name for name in skip.split(",") if name} - set(commands)
    if unknown:
        raise click.UsageError(
            f"--skip {', '.join(sorted(unknown))}: no such benchmark; there are {', '.join(commands)}"
        )
    results = context.meta[_COLLECTED] = []
    failed = []
    for name, command in commands.items():
        if command is None or name in skip.split(",") or any(parameter.required for parameter in command.params):
            continue
        given = {**vars(chosen), "out": None}
        names = {parameter.name for parameter in command.params}
        try:
            context.invoke(command, **{key: value for key, value in given.items() if key in names})
        except SystemExit:
            failed.append(name)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    if chosen.as_json:
        click.echo(text)
    if chosen.out is not None:
        write_figures(chosen.out, text)
    if failed:
        click.secho(f"error: what {', '.join(failed)} measured is not right", fg="red", err=True)
        sys.exit(1)
