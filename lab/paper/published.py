"""The paper's Tables 1 to 6 (LaSagnA, arXiv 2404.08506), in percent as printed.

What always holds: a row has one figure per column, None where the paper has a dash.
"""

from dataclasses import dataclass

from training.evaluation.chunks import PAPER, PAPER_SETS

Figures = tuple[float | None, ...]

SPECIALIST, ASSISTANT = "segmentation specialist", "vision-language assistant"


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, as it prints it.

    Attributes:
        number: Its number in the paper.
        title: What it compares.
        metric: What a figure is.
        columns: Headings of the figures.
        keys: Per column, the name that a data set of ours has in that column ("ade20k", "refcoco testA"); several
            figures of one data set have the same.
        rows: (kind, method, figures).
    """

    number: int
    title: str
    metric: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    rows: tuple[tuple[str, str, Figures], ...]

    def __post_init__(self) -> None:
        assert len(self.columns) == len(self.keys)
        assert all(len(figures) == len(self.columns) for _, _, figures in self.rows)


DASH = None

TABLE_1 = PaperTable(
    1,
    "Closed-set semantic segmentation",
    "mIoU",
    ("ADE20K", "COCO-Stuff", "Cityscapes"),
    ("ade20k val", "cocostuff val", "cityscapes val"),
    (
        (SPECIALIST, "RefineNet", (40.2, 33.6, 73.6)),
        (SPECIALIST, "UPerNet", (41.2, DASH, DASH)),
        (SPECIALIST, "OCR", (45.6, 40.5, 81.6)),
        (SPECIALIST, "Mask2Former", (47.2, DASH, 79.4)),
        (SPECIALIST, "SegViT", (54.6, 50.3, DASH)),
        (SPECIALIST, "MaskDINO+", (56.6, DASH, DASH)),
        (ASSISTANT, "LISA-7B", (19.7, 24.4, 38.5)),
        (ASSISTANT, "LaSagnA-7B", (42.0, 43.9, 63.2)),
    ),
)

TABLE_2 = PaperTable(
    2,
    "Open-set semantic segmentation",
    "mIoU",
    ("PC-459", "A-150", "PC-59", "PAS-20"),
    ("pascal_context_459 val", "ade20k val", "pascal_context_59 val", "pascal_voc_20 val"),
    (
        (SPECIALIST, "LSeg", (DASH, DASH, DASH, 47.4)),
        (SPECIALIST, "LSeg+", (5.2, 13.0, 36.0, DASH)),
        (SPECIALIST, "GroupViT", (4.9, 10.6, 25.9, 50.7)),
        (SPECIALIST, "PACL", (DASH, 31.4, 50.1, 72.3)),
        (SPECIALIST, "ZegFormer", (10.4, 18.0, 45.5, 89.5)),
        (SPECIALIST, "SimBaseline", (DASH, 20.5, 47.7, 88.4)),
        (SPECIALIST, "DeOP", (9.4, 22.9, 48.8, 91.7)),
        (SPECIALIST, "OVSeg", (11.0, 24.8, 53.3, 92.6)),
        (SPECIALIST, "SAN", (12.6, 27.5, 53.8, 94.0)),
        (ASSISTANT, "LaSagnA-7B, trained on COCO-Stuff alone", (8.5, 14.3, 46.1, 69.8)),
        (ASSISTANT, "LaSagnA-7B", (9.8, 42.0, 39.6, 61.8)),
    ),
)

TABLE_3 = PaperTable(
    3,
    "Referring and reasoning segmentation",
    "cIoU",
    (
        *(f"{name} {split}" for name in ("RefCOCO", "RefCOCO+") for split in ("val", "testA", "testB")),
        "RefCOCOg val(U)",
        "RefCOCOg test(U)",
        "ReasonSeg val",
    ),
    (
        *(f"{name} {split}" for name in ("refcoco", "refcoco+") for split in ("val", "testA", "testB")),
        "refcocog val",
        "refcocog test",
        "reasonseg val",
    ),
    (
        (SPECIALIST, "MCN", (62.4, 64.2, 59.7, 50.6, 55.0, 44.7, 49.2, 49.4, DASH)),
        (SPECIALIST, "VLT", (67.5, 70.5, 65.2, 56.3, 61.0, 50.1, 55.0, 57.7, DASH)),
        (SPECIALIST, "CRIS", (70.5, 73.2, 66.1, 62.3, 68.1, 53.7, 59.9, 60.4, DASH)),
        (SPECIALIST, "LAVT", (72.7, 75.8, 68.8, 62.1, 68.4, 55.1, 61.2, 62.1, DASH)),
        (SPECIALIST, "ReLA", (73.8, 76.5, 70.2, 66.0, 71.0, 57.7, 65.0, 66.0, DASH)),
        (SPECIALIST, "PolyFormer-B", (74.8, 76.6, 71.1, 67.6, 72.9, 59.3, 67.8, 69.1, DASH)),
        (ASSISTANT, "LISA-7B", (74.1, 76.5, 71.1, 62.4, 67.4, 56.5, 66.4, 68.5, 46.0)),
        (ASSISTANT, "PixelLM-7B", (73.0, 76.5, 68.2, 66.3, 71.7, 58.3, 69.3, 70.5, DASH)),
        (ASSISTANT, "PerceptionGPT-7B", (75.1, 78.6, 71.7, 68.5, 73.9, 61.3, 70.3, 71.7, DASH)),
        (ASSISTANT, "SESAME", (74.7, DASH, DASH, 64.9, DASH, DASH, 66.1, DASH, DASH)),
        (ASSISTANT, "GSVA-7B", (76.4, 77.4, 72.8, 64.5, 67.7, 58.6, 71.1, 72.0, DASH)),
        (ASSISTANT, "LaSagnA-7B", (76.8, 78.7, 73.8, 66.4, 70.6, 60.1, 70.6, 71.9, 47.2)),
    ),
)

TABLE_4 = PaperTable(
    4,
    "Generalised referring segmentation (several targets, or none)",
    "cIoU, gIoU",
    tuple(f"gRefCOCO {split} {metric}" for split in ("val", "testA", "testB") for metric in ("cIoU", "gIoU")),
    tuple(f"grefcoco {split}" for split in ("val", "testA", "testB") for _metric in ("cIoU", "gIoU")),
    (
        (SPECIALIST, "MattNet", (47.5, 48.2, 58.7, 59.3, 45.3, 46.1)),
        (SPECIALIST, "LTS", (52.3, 52.7, 61.9, 62.6, 49.9, 50.4)),
        (SPECIALIST, "CRIS", (55.3, 56.3, 63.8, 63.4, 51.0, 51.8)),
        (SPECIALIST, "LAVT", (57.6, 58.4, 65.3, 65.9, 55.0, 55.8)),
        (ASSISTANT, "LISA-7B", (38.7, 32.2, 52.6, 48.5, 44.8, 39.7)),
        (ASSISTANT, "GSVA-7B", (61.7, 63.3, 69.2, 70.1, 60.3, 61.3)),
        (ASSISTANT, "LaSagnA-7B, not trained on gRefCOCO", (38.1, 32.4, 50.4, 47.3, 42.1, 38.9)),
    ),
)

TABLE_5 = PaperTable(
    5,
    "Ablation of the training strategies",
    "mIoU; cIoU of texts",
    ("ADE20K", "COCO-Stuff", "Cityscapes", "RefCOCO val", "RefCOCO testA", "RefCOCO testB", "ReasonSeg val"),
    ("ade20k val", "cocostuff val", "cityscapes val", "refcoco val", "refcoco testA", "refcoco testB", "reasonseg val"),
    (
        (ASSISTANT, "LISA", (19.7, 24.4, 38.5, 74.1, 76.5, 71.1, 46.0)),
        (ASSISTANT, "+ class list", (35.2, 40.5, 59.9, 73.9, 76.6, 70.4, 46.3)),
        (ASSISTANT, "+ random classes list", (37.4, 42.0, 59.9, 73.9, 76.2, 70.6, 49.5)),
        (ASSISTANT, "+ sequence augmentation", (37.6, 42.4, 60.1, 73.5, 76.8, 71.1, 52.7)),
        (ASSISTANT, "+ target order consistency", (38.6, 43.2, 61.3, 74.5, 77.0, 71.2, 54.0)),
    ),
)

TABLE_6 = PaperTable(
    6,
    "Chunk size at inference",
    "mIoU",
    PAPER_SETS,
    ("ade20k val", "cocostuff val"),
    tuple((ASSISTANT, size, figures) for size, figures in PAPER.items()),
)

TABLES = (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6)
