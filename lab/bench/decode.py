"""`lasagna bench decode`: ways of decoding the same class lists, side by side."""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from lab.bench.command import (
    ModelOptions,
    Numbers,
    Row,
    both_times,
    common_options,
    report,
    sample_classes,
    sample_images,
    time_interleaved,
)
from lab.bench.measure import synchronise
from lab.bench.peer_models import write_model
from lab.bench.plot import plot_times
from lasagna.errors import QueryError
from lasagna.models.loading import load_model

if TYPE_CHECKING:
    import torch

    from lasagna.assistant.lasagna import Lasagna
    from lasagna.prompt.sequences import Name

CURVES = {
    "generate": "token by token",
    "single": "one query per class",
    "chunked": "chunked",
    "parallel": "exact parallel",
    "peer": "SAM 3, one concept each",
}
"""What is plotted: a way's name in the rows, and in the plot."""
_PEER_CONCEPTS = 4
"""Concepts of SAM 3 that are timed, in one forward: every further one costs the same."""


@click.command(
    epilog="""\b
Examples:
  lasagna bench decode --classes 20,133
  lasagna bench decode --classes 133 --dtype float32,bfloat16 --json
  lasagna bench decode --random-weights lasagna-7b-tiny --classes 20,150,500 --plot decode.png
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
@click.option("--chunk", type=click.IntRange(1), default=20, show_default=True, help="Classes per chunk of 'chunked'.")
@click.option(
    "--window",
    type=click.IntRange(0),
    help="Tokens of the answer that run at once; 0: all. [default: what the device is best with]",
)
@click.option(
    "--peer",
    type=click.Choice(["real", "tiny"]),
    help="Also time SAM 3 with random weights at this size, on known vision features; real: minutes on a CPU.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="ms per image against classes (.png).")
@common_options
def decode(
    counts: tuple[int, ...],
    batch: int,
    share: float,
    chunk: int,
    window: int | None,
    peer: str | None,
    plot: Path | None,
    chosen: ModelOptions,
) -> None:
    """Decode class lists in five ways.

    \b
    parallel     the whole list in passes until nothing changes (ours)
    chunked      the same for chunks of the list, in one batch; another answer
    single       one query per class, one after the other; another answer
    sequential   one forward per class
    generate     one forward per token of the answer

    identical: every decision is the one that the class-by-class decoder makes after the same decisions. Near ties,
    whose margin is within the rounding noise of the number format, are counted apart. Exit code 1 when it is not so.

    parallel and chunked are the median of --repeats; the slow ways, thousands of forwards each, are timed once, while
    they are compared with. Every way begins with an encoded image. So does SAM 3 (--peer), whose time, of 4 concepts
    and multiplied, holds the masks too.
    """
    dialects = (
        ("paper", "released") if chosen.random_weights is not None and chosen.dialect is None else (chosen.dialect,)
    )
    rows: list[Row] = []
    for wording in dialects:
        for dtype in chosen.dtypes:
            model = chosen.load(dtype, max(counts), wording)
            rows += [
                {"dialect": wording or "own", **_row(model, dtype, count, batch, share, chunk, window, chosen.repeats)}
                for count in counts
            ]
    name = chosen.random_weights or model.version
    if peer is not None:
        concept = _seconds_per_concept(peer, model.model.device, chosen.dtypes[0])
        rows = [{**row, "seconds_peer": int(row["classes"]) * batch * concept} for row in rows]
    setting: Row = {"model": name, "images": batch, "chunk": chunk, "repeats": chosen.repeats}
    report("decode", setting, rows, device=str(model.model.device), as_json=chosen.as_json, out=chosen.out)
    if plot is not None:
        _plot(plot, rows, batch, name)
    if not all(row["identical"] for row in rows):
        click.secho("error: a decision is not that of the class-by-class decoder", fg="red", err=True)
        sys.exit(1)


def _plot(path: Path, rows: list[Row], batch: int, name: str) -> None:
    """The rows of the first dialect and number format."""
    first = [row for row in rows if (row["dialect"], row["dtype"]) == (rows[0]["dialect"], rows[0]["dtype"])]
    first.sort(key=lambda row: int(row["classes"]))
    ways = {way: title for way, title in CURVES.items() if f"seconds_{way}" in first[0]}
    series = {title: [1000 * row[f"seconds_{way}"] / batch for row in first] for way, title in ways.items()}
    plot_times(path, [row["classes"] for row in first], series, f"decoding, {name}, {rows[0]['dtype']}")


def _seconds_per_concept(size: str, device: "torch.device", dtype: str) -> float:
    """Seconds that SAM 3 takes for a concept on known vision features, with `_PEER_CONCEPTS` in one block and the masks
    of all of them: plain, without presence first (`lasagna bench peer` has both)."""
    names = sample_classes(_PEER_CONCEPTS)
    with TemporaryDirectory(prefix="lasagna-peer-") as folder:
        model: Any = load_model(write_model("sam3", Path(folder) / "sam3", size), device=str(device), dtype=dtype)
    model.presence_first = False
    photo = model.encode_image(sample_images(1)[0])
    ways = {"concepts": lambda: model.segment(photo, names, chunk_size=_PEER_CONCEPTS)}
    return time_interleaved(ways, 1, str(device))["concepts"] / _PEER_CONCEPTS


def _names_that_fit(model: "Lasagna", count: int) -> "list[Name]":
    """So many classes of one sequence. Raises QueryError where it is longer than the model was made for."""
    prompt = model.prompt
    names = [prompt.encode_name(name) for name in sample_classes(count)]
    length = prompt.length(names)
    if length > prompt.format.max_length:
        raise QueryError(
            f"{count} classes make a sequence of {length} tokens, {model.version} was made for "
            f"{prompt.format.max_length}; ask for fewer classes"
        )
    return names


def _row(
    model: "Lasagna", dtype: str, count: int, batch: int, share: float, chunk: int, window: int | None, repeats: int
) -> Row:
    """One line: `count` classes asked of `batch` images."""
    import torch

    from lab.bench.decoders import bias_for_share, compare_decisions
    from lasagna.network.decoding import best_window, decode_class_lists

    network, prompt = model.model, model.prompt
    names = _names_that_fit(model, count)
    query = prompt.query(names)
    singles = [prompt.query([name]) for name in names]
    plan = prompt.plan_chunks(names, chunk)
    chunks = [prompt.query([names[i] for i in members]) for members in plan]
    tokens = torch.cat([model.encode_image(image).encoded.tokens for image in sample_images(batch)])
    bias = bias_for_share(network, prompt, tokens, query, share, rounds=2)

    width = best_window(network.device) if window is None else window or None

    def parallel() -> Any:
        return decode_class_lists(network, prompt, tokens, [query] * batch, range(batch), [bias] * batch, width)

    def chunked() -> Any:
        owners = [image for image in range(batch) for _ in chunks]
        biases = [bias[members] for members in plan] * batch
        return decode_class_lists(network, prompt, tokens, chunks * batch, owners, biases, width)

    def single() -> None:
        for i, asked in enumerate(singles):
            decode_class_lists(network, prompt, tokens, [asked] * batch, range(batch), [bias[i : i + 1]] * batch)

    decoded = parallel()
    present = torch.stack([found.present for found in decoded.lists])
    found = compare_decisions(network, prompt, tokens, query, bias, present)
    times = both_times({"parallel": parallel, "chunked": chunked}, repeats, str(network.device))
    seconds = {name: wall for name, (wall, _) in times.items()}
    began = time.perf_counter()
    single()
    synchronise(str(network.device))
    seconds["single"] = time.perf_counter() - began
    seconds["sequential"], seconds["generate"] = found.seconds
    return {
        "classes": count,
        "dtype": dtype,
        "identical": found.identical,
        "differing": found.differing,
        "near_ties": found.near_ties,
        "noise": found.noise,
        "present": float(present.float().mean()),
        "tokens": prompt.length(names),
        "passes": decoded.passes,
        "sequential_steps": count,
        "generate_steps": len(query.answer),
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "processor_parallel": times["parallel"][1],
        "processor_generate": found.processor[1],
        "times_faster_than_generate": seconds["generate"] / seconds["parallel"],
        "times_less_processor_than_generate": found.processor[1] / max(times["parallel"][1], 1e-9),
        "times_faster_than_single": seconds["single"] / seconds["parallel"],
    }
