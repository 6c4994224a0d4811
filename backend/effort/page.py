"""The page of edit effort: one HTML file with plots as inline SVG, made of an `EffortReport` alone.

What always holds: names are escaped; colours are the page's own, so the plots are readable in its dark style too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from backend.effort.report import CONFIDENCE, EffortReport, Estimate, VersionSummary
from lasagna.pages import page_environment


@dataclass(frozen=True)
class FigureName:
    """How a figure is shown.

    Attributes:
        key: In `VersionSummary.figures`.
        title: In words.
        unit: Behind a number.
        scale: From the figure to what is shown.
        digits: Behind the point.
        less_is_better: Of two versions.
        plotted: It has a plot.
    """

    key: str
    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 0
    less_is_better: bool = True
    plotted: bool = False

    def show(self, value: float, sign: str = "") -> str:
        text = f"{self.scale * value:{sign},.{self.digits}f}".replace(",", "\u2009")
        return f"{text} {self.unit}".strip()


FIGURES = (
    FigureName("changed_pixels", "Pixels changed per photo", plotted=True),
    FigureName("changed_share", "Share of the photo changed", "%", 100, 2, plotted=True),
    FigureName("boundary", "Boundary moved", "px", digits=1, plotted=True),
    FigureName("accepted", "Regions accepted as they were", "%", 100, 1, less_is_better=False, plotted=True),
    FigureName("untouched", "Photos accepted as they were", "%", 100, 1, less_is_better=False),
    FigureName("regions_changed", "Regions changed per photo", digits=2),
    FigureName("regions_added", "Regions added per photo", digits=2),
    FigureName("regions_deleted", "Regions deleted per photo", digits=2),
    FigureName("objects_cut", "Objects cut in two per photo", digits=2),
    FigureName("objects_merged", "Objects merged per photo", digits=2),
    FigureName("seconds", "Seconds per photo (median)", "s", digits=1, plotted=True),
)

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 220, 58, 34, 12
_PLOTTED_VERSIONS = 12


@dataclass(frozen=True)
class Point:
    """A version in a plot: its place, and that of its interval's ends, in pixels of the plot."""

    x: float
    y: float
    low: float | None
    high: float | None
    label: str
    title: str


@dataclass(frozen=True)
class Plot:
    """A figure over the versions. `ticks`: (y, text)."""

    figure: FigureName
    points: list[Point]
    ticks: list[tuple[float, str]]


def render_effort(report: EffortReport) -> str:
    """The page of edit effort as HTML."""
    plotted = report.versions[-_PLOTTED_VERSIONS:]
    plots = [_plot(figure, plotted) for figure in FIGURES if figure.plotted]
    mean = [
        one.figures["changed_pixels"].value or 0.0
        for version in report.versions
        for one in version.classes
        if "changed_pixels" in one.figures
    ]
    names: dict[str, None] = {}
    for version in reversed(report.versions):  # the newest version's classes first, those that cost most on top
        names.update(dict.fromkeys(one.name for one in version.classes))
    return (
        page_environment("backend")
        .get_template("effort.html")
        .render(
            report=report,
            figures=FIGURES,
            figure_of={figure.key: figure for figure in FIGURES},
            plots=[plot for plot in plots if plot.points],
            headline=headline(report),
            class_names=list(names),
            largest=max(mean, default=0.0) or 1.0,
            confidence=CONFIDENCE,
            size=(WIDTH, HEIGHT, LEFT, BOTTOM, TOP),
            effect=effect,
        )
    )


def effect(figure: FigureName, change: Estimate) -> str:
    """ "better", "worse", or "" where it could be chance."""
    if change.interval is None or change.interval[0] <= 0 <= change.interval[1]:
        return ""
    return "better" if (change.interval[1] < 0) == figure.less_is_better else "worse"


def headline(report: EffortReport) -> str:
    """What the newest version cost its annotators, and whether that is less than before."""
    if not report.versions:
        return "No corrected task can be compared yet."
    figure, newest = FIGURES[0], report.versions[-1]
    value = newest.figures[figure.key].value or 0.0
    words = f"With {newest.version} annotators changed {figure.show(value)} pixels per photo"
    change = newest.against_previous.get(figure.key)
    if change is None or change.value is None:
        return f"{words}."
    before = value - change.value
    share = f"{abs(100 * change.value / before):.0f} % {'less' if change.value < 0 else 'more'}" if before else "more"
    beyond = {"better": "", "worse": "", "": "; that may be chance"}[effect(figure, change)]
    return f"{words}, {share} than with {report.versions[-2].version} ({figure.show(before)}){beyond}."


def _plot(figure: FigureName, versions: Sequence[VersionSummary]) -> Plot:
    known = [
        (number, version, estimate)
        for number, version in enumerate(versions)
        if (estimate := version.figures.get(figure.key)) is not None and estimate.value is not None
    ]
    highest = max(
        (figure.scale * value for _, _, one in known for value in (one.value or 0.0, *(one.interval or ()))),
        default=0.0,
    )
    step = _step(highest)
    top = step * max(1, math.ceil(highest / step))

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * figure.scale * value / top, 1)

    width = (WIDTH - LEFT) / max(1, len(versions))
    points = [
        Point(
            round(LEFT + width * (number + 0.5), 1),
            y(one.value or 0.0),
            y(one.interval[0]) if one.interval else None,
            y(one.interval[1]) if one.interval else None,
            _short(version.version, int(width / 7)),
            f"{version.version}: {in_words(figure, one)}, {version.tasks} photos",
        )
        for number, version, one in known
    ]
    digits = max(0, -math.floor(math.log10(step)))
    ticks = [(y(i * step / figure.scale), f"{i * step:.{digits}f}") for i in range(round(top / step) + 1)]
    return Plot(figure, points, ticks)


def in_words(figure: FigureName, one: Estimate) -> str:
    """A figure with its interval."""
    if one.value is None:
        return "undefined"
    words = figure.show(one.value)
    if one.interval:
        words += f" ({figure.show(one.interval[0])} to {figure.show(one.interval[1])})"
    return words


def _step(highest: float) -> float:
    """Between ticks: 1, 2 or 5 times a power of ten, three to six of them."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest / 3))
    return next(factor * power for factor in (1, 2, 5, 10) if highest / (factor * power) <= 5)


def _short(name: str, letters: int) -> str:
    return name if len(name) <= max(6, letters) else "…" + name[-max(5, letters - 1) :]
