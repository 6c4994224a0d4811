"""How the size of the class lists matters: the paper's Table 6 on any data set (`lasagna evaluate --chunk-sizes`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lasagna.contract.model import ClassListAnswerer
from training.data.sources import Source
from training.evaluation.evaluate import Evaluation, evaluate_dataset
from training.evaluation.tables import figure, markdown_table, percent

PAPER_SETS = ("ADE20K", "COCO-Stuff")
PAPER = {"N": (42.0, 43.9), "N/2": (38.9, 41.8), "N/3": (30.8, 33.2), "N/4": (31.0, 34.3)}
"""LaSagnA-7B's mIoU in percent by chunk size, on `PAPER_SETS`: Table 6 of arXiv 2404.08506."""


@dataclass(frozen=True)
class ChunkSize:
    """How many classes one list holds: `N`, `N/2` (a share of all classes, rounded up) or a number."""

    text: str

    @classmethod
    def parse(cls, text: str) -> "ChunkSize":
        """Raises ValueError for what is no chunk size."""
        head, slash, divisor = text.partition("/")
        if head == "N" and (not slash or (divisor.isdigit() and int(divisor))):
            return cls(text)
        if text.isdigit() and int(text):
            return cls(text)
        raise ValueError(f"{text!r} is no chunk size; give N, N/2 or a number of classes, as in N,N/2,N/4,1")

    def classes(self, total: int) -> int:
        """For `total` classes; at least 1, at most `total`."""
        head, _, divisor = self.text.partition("/")
        asked = -(-total // int(divisor or 1)) if head == "N" else int(head)
        return max(1, min(total, asked))


@contextmanager
def count_forwards(model: Any) -> Iterator[Callable[[], int | None]]:
    """Counts the forwards of a `Lasagna`'s language model; yields a function that says how many there were so far.

    A batch of chunks takes one for what the chunks share, and one for each pass over the answers. The function says
    None of a model that is no `Lasagna`.
    """
    language_model = getattr(getattr(model, "model", None), "language_model", None)
    calls: list[None] = []
    if language_model is None:
        yield lambda: None
        return
    hook = language_model.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield lambda: len(calls)
    finally:
        hook.remove()


def evaluate_chunk_sizes(
    model: ClassListAnswerer,
    source: Source,
    sizes: Sequence[ChunkSize],
    on_image: Callable[[], None] = lambda: None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Evaluates a data set once per chunk size; see `evaluate_dataset` for the options.

    Returns:
        Per size: `size` (as asked), `classes_per_list`, `lists`, `paper_miou` (ADE20K and COCO-Stuff, percent, or
        None), `forwards` of the language model over all images, and the figures `miou`, `presence`,
        `calibration_error`, `absent_false_positive_rate`, `seconds_per_image`.
    """
    total = len(source.classes)
    if "distractors" in options and options["distractors"] is not None:
        total += len(options["distractors"].names)
    rows = []
    for size in sizes:
        chunk = size.classes(total)
        with count_forwards(model) as forwards:
            found: Evaluation = evaluate_dataset(model, source, chunk_size=chunk, on_image=on_image, **options)
        figures = found.as_dict()
        kept = ("miou", "presence", "calibration_error", "absent_false_positive_rate", "seconds_per_image")
        rows.append(
            {
                "size": size.text,
                "classes_per_list": chunk,
                "lists": -(-total // chunk),
                "paper_miou": PAPER.get(size.text),
                "forwards": forwards(),
                **{key: figures[key] for key in kept},
                "failures": figures["failures"],
            }
        )
    return rows


def chunk_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, ours in percent as the paper's."""
    headings = ["chunk size", "lists", "mIoU", "presence F1", "presence AP", "absent said present", "s per image"]
    headings += [f"paper: {column}" for column in PAPER_SETS]
    lines = []
    for row in rows:
        presence, paper = row["presence"], row["paper_miou"] or (None,) * len(PAPER_SETS)
        figures = (row["miou"], presence["f1"], presence["average_precision"], row["absent_false_positive_rate"])
        lines.append(
            [
                f"{row['size']} ({row['classes_per_list']})" if row["size"].startswith("N") else row["size"],
                row["lists"],
                *(percent(value) for value in figures),
                figure(row["seconds_per_image"], 2),
                *(figure(value, 1) for value in paper),
            ]
        )
    return markdown_table(headings, lines)
