"""The plot of `lasagna bench decode`: milliseconds per image against the number of classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lasagna.errors import DataError


def plot_times(path: Path, counts: Sequence[int], series: Mapping[str, Sequence[float]], title: str) -> None:
    """Writes a plot with two logarithmic axes; the file's ending says whether PNG, SVG or PDF.

    Args:
        counts: Classes, along the axis.
        series: Name of a curve: its milliseconds per image for each count.

    Raises:
        DataError: The file cannot be written, or its ending is none of those.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "lasagna", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        drawing = Figure((6.0, 3.8), layout="constrained")
        axes = drawing.add_subplot()
        for name, values in series.items():
            axes.plot(counts, values, marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="ms per image", title=title)
        axes.set_xticks(counts, [str(count) for count in counts], minor=False)
        axes.minorticks_off()
        axes.legend(fontsize=7)
        try:
            drawing.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: the plot cannot be written there ({error})") from error
