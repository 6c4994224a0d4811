"""Plots of figures, as SVG files (or text) that depend on the figures alone (no date, no random ids).

What always holds: a series has one colour in a plot, missing figures leave a gap.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from training.evaluation.metrics import Reliability


@contextmanager
def _figure(path: Path | TextIO, width: float, height: float) -> Iterator[Any]:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "lasagna", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        drawing = Figure((width, height), layout="constrained")
        FigureCanvasSVG(drawing)
        axes = drawing.add_subplot()
        axes.set_axisbelow(True)
        yield axes
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, format="svg", metadata={"Date": None})


def bar_plot(
    path: Path, groups: Sequence[str], series: Mapping[str, Sequence[float | None]], unit: str, title: str
) -> None:
    """Bars of several series side by side.

    Args:
        groups: Along the axis.
        series: Name -> a figure per group.
        unit: Of the figures.
    """
    width = 0.8 / max(1, len(series))
    with _figure(path, max(5.0, 1.0 + 0.35 * len(groups) * len(series)), 3.2) as axes:
        for number, (name, values) in enumerate(series.items()):
            places = [i - 0.4 + (number + 0.5) * width for i in range(len(groups))]
            shown = [(x, y) for x, y in zip(places, values, strict=True) if y is not None]
            bars = axes.bar([x for x, _ in shown], [y for _, y in shown], width, label=name)
            axes.bar_label(bars, fmt="%.1f", fontsize=6, padding=1)
        axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
        axes.set(ylabel=unit, title=title)
        axes.legend(fontsize=7)


def line_plot(
    path: Path, ticks: Sequence[str], series: Mapping[str, Sequence[float | None]], labels: tuple[str, str], title: str
) -> None:
    """One line per series over common ticks; `labels` of the two axes."""
    with _figure(path, 6.0, 3.4) as axes:
        for name, values in series.items():
            shown = [(i, y) for i, y in enumerate(values) if y is not None]
            style = "--" if name.startswith("paper") else "-"
            axes.plot([i for i, _ in shown], [y for _, y in shown], style, marker="o", label=name)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
        axes.legend(fontsize=7)


def reliability_plot(path: Path | TextIO, found: Mapping[str, Reliability], title: str) -> None:
    """Reliability diagrams, one line per data set: on the diagonal, probabilities are frequencies. Larger dots stand
    for more answers."""
    with _figure(path, 4.6, 4.4) as axes:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        for name, one in found.items():
            shown = one.count > 0
            share = one.count[shown] / one.count.sum()
            (line,) = axes.plot(
                one.predicted[shown], one.observed[shown], linewidth=1, label=f"{name}: {one.error:.3f}"
            )
            axes.scatter(one.predicted[shown], one.observed[shown], 6 + 150 * share, color=line.get_color())
        axes.set(xlabel="mean probability", ylabel="share that is present", title=title, xlim=(0, 1), ylim=(0, 1))
        axes.legend(fontsize=7, title="calibration error", title_fontsize=7)


def change_plot(
    path: Path | TextIO,
    names: Sequence[str],
    before: Sequence[float | None],
    after: Sequence[float | None],
    series: tuple[str, str],
    unit: str,
    title: str,
) -> None:
    """A figure of each item before and after, as two dots on a line that points from the one to the other.

    Args:
        names: Of the items, the first on top.
        series: What the two dots are called.
        unit: Of the figures.
    """
    with _figure(path, 6.4, 1.3 + 0.24 * len(names)) as axes:
        places = range(len(names))
        for place, old, new in zip(places, before, after, strict=True):
            if old is not None and new is not None:
                axes.plot([old, new], [place, place], color="seagreen" if new >= old else "firebrick", linewidth=2)
        for values, name, style in ((before, series[0], "none"), (after, series[1], "full")):
            shown = [(value, place) for place, value in zip(places, values, strict=True) if value is not None]
            x, y = [value for value, _ in shown], [place for _, place in shown]
            axes.plot(x, y, "o", color="black", fillstyle=style, markersize=5, linestyle="none", label=name)
        axes.set_yticks(places, names)
        axes.set(xlabel=unit, title=title, ylim=(len(names) - 0.5, -0.5))
        axes.figure.legend(fontsize=7, loc="outside lower center", ncols=2)
