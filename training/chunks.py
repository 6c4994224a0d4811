"""How the size of the class lists matters: the paper's Table 6 on any data set (`lasagna evaluate --chunk-sizes`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from training.data import FolderDataset
from training.evaluate import Evaluation, Segmenter, evaluate_dataset

PAPER = {"N": (42.0, 43.9), "N/2": (38.9, 41.8), "N/3": (30.8, 33.2), "N/4": (31.0, 34.3)}
"""mIoU in percent on ADE20K and COCO-Stuff by chunk size, from the paper's Table 6."""


@dataclass(frozen=True)
class ChunkSize:
    """How many classes one list holds: `N`, `N/2` (a share of all classes, rounded up) or a number."""

    text: str

    def classes(self, total: int) -> int:
        """For `total` classes; at least 1, at most `total`."""
        head, _, divisor = self.text.partition("/")
        asked = -(-total // int(divisor or 1)) if head == "N" else int(head)
        return max(1, min(total, asked))


class ChunkSizes(click.ParamType):
    """The command line's list of chunk sizes: `N,N/2,N/4,1`."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        sizes = []
        for text in (part.strip() for part in value.split(",")):
            head, slash, divisor = text.partition("/")
            if not (head == "N" and (not slash or (divisor.isdigit() and int(divisor)))) and not (
                text.isdigit() and int(text)
            ):
                self.fail(
                    f"{text!r} is no chunk size; give N, N/2 or a number of classes, as in N,N/2,N/4,1", param, ctx
                )
            sizes.append(ChunkSize(text))
        return tuple(sizes)


def evaluate_chunk_sizes(
    model: Segmenter,
    dataset: FolderDataset,
    sizes: Sequence[ChunkSize],
    on_image: Callable[[], None] = lambda: None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Evaluates a data set once per chunk size; see `evaluate_dataset` for the options.

    Returns:
        Per size: `size` (as asked), `classes_per_list`, `lists`, `paper_miou` (ADE20K and COCO-Stuff, percent, or
        None), and the figures `miou`, `presence`, `calibration_error`, `absent_false_positive_rate`,
        `seconds_per_image`.
    """
    total = len(dataset.classes)
    if "distractors" in options and options["distractors"] is not None:
        total += len(options["distractors"].names)
    rows = []
    for size in sizes:
        chunk = size.classes(total)
        found: Evaluation = evaluate_dataset(model, dataset, chunk_size=chunk, on_image=on_image, **options)
        figures = found.as_dict()
        kept = ("miou", "presence", "calibration_error", "absent_false_positive_rate", "seconds_per_image")
        rows.append(
            {
                "size": size.text,
                "classes_per_list": chunk,
                "lists": -(-total // chunk),
                "paper_miou": PAPER.get(size.text),
                **{key: figures[key] for key in kept},
                "failures": figures["failures"],
            }
        )
    return rows


def chunk_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, ours in percent as the paper's."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}"

    lines = [
        "| chunk size | lists | mIoU | presence F1 | presence AP | absent said present | s per image "
        "| paper: ADE20K | paper: COCO-Stuff |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        presence, paper = row["presence"], row["paper_miou"] or ("–", "–")
        figures = (row["miou"], presence["f1"], presence["average_precision"], row["absent_false_positive_rate"])
        cells = [
            f"{row['size']} ({row['classes_per_list']})" if row["size"].startswith("N") else row["size"],
            str(row["lists"]),
            *(percent(value) for value in figures),
            "–" if row["seconds_per_image"] is None else f"{row['seconds_per_image']:.2f}",
            *(str(value) for value in paper),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
