"""`lasagna bench`: the performance figures, as a table and as JSON.

Every benchmark is one sub-command that yields rows of figures; `report` prints them, together with the machine they
were measured on. Other packages register theirs in the entry-point group `lasagna.benchmarks`. What always holds: ways
of doing the same thing are timed side by side in one process, interleaved, each after one untimed run, and the figure
is the median of the repeats; what is timed is checked for being right in the same run.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lasagna.commands import EntryPointGroup
from lasagna.errors import DataError, QueryError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lasagna.assistant import Lasagna

Row = dict[str, Any]

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
    """Positive whole numbers, separated by commas."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 20,133", param, ctx)
        if min(numbers) < 1:
            self.fail(f"{value!r}: every number is at least 1", param, ctx)
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


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every benchmark has: --model, --device, --dtype, --repeats, --json, --out."""
    for option in reversed(
        (
            click.option(
                "--model", "model_name", default="nano", show_default=True, help="Shipped name, folder, hub id."
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
    """Median seconds of each way of doing something.

    All ways run once untimed, then in turn, `repeats` rounds: what else the machine does meets all of them alike.
    """
    import torch

    def run(way: Callable[[], Any]) -> float:
        began = time.perf_counter()
        way()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for way in ways.values():
        run(way)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(run(way))
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(name: str, setting: Row, rows: Sequence[Row], *, device: str, as_json: bool, out: Path | None) -> None:
    """Prints a benchmark's rows, as a table or as one JSON object {benchmark, setting, environment, rows}.

    Args:
        name: The sub-command.
        setting: What holds for all rows (model, repeats, ...).
        rows: All with the same keys; each is a column of the table.
        device: That was measured.
    """
    from lasagna.environment import describe_environment

    environment = describe_environment(device)
    result = {"benchmark": name, "setting": setting, "environment": environment, "rows": list(rows)}
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    if out is not None:
        try:
            out.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{out}: the figures cannot be written there ({error.strerror})") from error
    if as_json:
        click.echo(text)
        return
    from rich.console import Console
    from rich.table import Table

    # A figure per line and a column per row: there are more figures than a terminal of 80 characters has room for.
    table = Table(show_header=False)
    table.add_column()
    for _ in rows:
        table.add_column(justify="right")
    for heading in rows[0] if rows else ():
        table.add_row(heading.replace("_", " "), *(_figure(row[heading]) for row in rows))
    console = Console()
    # Not the table's title: that would be broken at the table's width.
    console.print(f"bench {name}: " + ", ".join(f"{key} {value}" for key, value in setting.items()))
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in environment.items()), style="dim")


def _figure(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def sample_images(count: int) -> "list[NDArray[np.uint8]]":
    """`count` real photos, uint8 (H, W, 3): those that scikit-image ships, then the same shifted sideways."""
    import numpy as np
    import skimage.data

    from lasagna.image import load_image

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
)
def bench() -> None:
    """Measure how fast the model is on this machine, and that the fast way gives the right result."""


@bench.command(
    epilog="""\b
Examples:
  lasagna bench decode --classes 20,133
  lasagna bench decode --classes 133 --dtype float32,bfloat16 --json
  lasagna bench decode --model my-checkpoint --batch 4 --repeats 5 --out decode.json
"""
)
@click.option("--classes", "counts", type=Numbers(), default="20,133", show_default=True, help="Lengths of the list.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images asked at once.")
@click.option(
    "--present",
    "share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of the classes that is to be present: the threshold is set for it.",
)
@common_options
def decode(
    counts: tuple[int, ...],
    batch: int,
    share: float,
    model_name: str,
    device: str,
    dtypes: tuple[str, ...],
    repeats: int,
    as_json: bool,
    out: Path | None,
) -> None:
    """Decode class lists in three ways: in parallel passes (ours), class by class, token by token.

    identical: every decision is the one that the class-by-class decoder makes after the same decisions. Near ties,
    whose margin is within the rounding noise of the number format, are counted apart. Exit code 1 when it is not so.
    """
    from lasagna import Lasagna

    rows: list[Row] = []
    for dtype in dtypes:
        model = Lasagna.from_pretrained(model_name, device=device, dtype=dtype)
        rows += [_decode_row(model, dtype, count, batch, share, repeats) for count in counts]
    setting: Row = {"model": model.version, "images": batch, "repeats": repeats}
    report("decode", setting, rows, device=str(model.model.device), as_json=as_json, out=out)
    if not all(row["identical"] for row in rows):
        click.secho("error: a decision is not that of the class-by-class decoder", fg="red", err=True)
        sys.exit(1)


def _decode_row(model: "Lasagna", dtype: str, count: int, batch: int, share: float, repeats: int) -> Row:
    """One line of `bench decode`: `count` classes asked of `batch` images."""
    import torch

    from lasagna.bench_decoders import bias_for_share, compare_decisions, decode_class_by_class, decode_token_by_token
    from lasagna.decoding import decode_class_lists

    network, prompt = model.model, model.prompt
    names = [prompt.encode_name(name) for name in sample_classes(count)]
    length = prompt.length(names)
    if length > prompt.format.max_length:
        raise QueryError(
            f"{count} classes make a sequence of {length} tokens, {model.version} was made for "
            f"{prompt.format.max_length}; ask for fewer classes"
        )
    query = prompt.query(names)
    tokens = torch.cat([model.encode_image(image).encoded.tokens for image in sample_images(batch)])
    bias = bias_for_share(network, prompt, tokens, query, share)

    def parallel() -> Any:
        return decode_class_lists(network, prompt, tokens, [query] * batch, range(batch), [bias] * batch)

    def sequential() -> Any:
        return decode_class_by_class(network, prompt, tokens, query, bias)

    def generate() -> Any:
        return decode_token_by_token(network, prompt, tokens, query, bias)

    decoded = parallel()
    present = torch.stack([chunk.present for chunk in decoded.lists])
    found = compare_decisions(network, prompt, tokens, query, bias, present)
    ways = {"parallel": parallel, "sequential": sequential, "generate": generate}
    seconds = time_interleaved(ways, repeats, str(network.device))
    return {
        "classes": count,
        "dtype": dtype,
        "identical": found.identical,
        "differing": found.differing,
        "near_ties": found.near_ties,
        "noise": found.noise,
        "present": float(present.float().mean()),
        "passes": decoded.passes,
        "sequential_steps": sequential().steps,
        "generate_steps": generate().steps,
        "seconds_parallel": seconds["parallel"],
        "seconds_sequential": seconds["sequential"],
        "seconds_generate": seconds["generate"],
        "times_faster_than_generate": seconds["generate"] / seconds["parallel"],
    }
