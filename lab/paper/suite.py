"""`lasagna evaluate CONFIG`: which models are measured on which data sets for which of the paper's tables.

A suite is one YAML file. It falls into parts, each one model on one data set for one table; a part's figures are kept
in the output folder under a fingerprint of all that they depend on, so that a suite that was killed, or to which a
model is added, computes only what is missing. What always holds: figures of another checkpoint, data set path, limit or
chunk size are never taken for those that are asked.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass as checked

from lab.names import asked_everything
from lab.paper.answering import answer_as
from lab.paper.specialist import Specialist
from lasagna import Lasagna
from lasagna.checkpoint.folder import checkpoint_version
from lasagna.errors import ConfigError, LasagnaError
from lasagna.settings import data_folder
from training.data.sources import SOURCES, LocatedSource, Source, find_source
from training.data.sources.expressions import Expressions
from training.data.spread import spread
from training.evaluation.chunks import ChunkSize, count_forwards
from training.evaluation.evaluate import choose_distractors, evaluate_dataset, read_names
from training.evaluation.tables import save_text
from training.evaluation.texts import evaluate_texts, text_segmenter
from training.recipe.checked_yaml import YamlFile
from training.recipe.fields import STRICT, Count

SEMANTIC, TEXTS = ("closed_set", "open_set", "chunk_sizes"), ("referring", "generalised")


@checked(frozen=True, config=STRICT)
class Model:
    """What is measured.

    Attributes:
        checkpoint: A shipped name or a folder; of a specialist the folder of `lasagna experiment specialist --out`.
        kind: "lasagna": class lists, every class answered. "one_by_one": one class per question and everything drawn
            that is asked for (LISA). "free": class lists answered freely. "specialist": a softmax of its own classes.
    """

    checkpoint: str
    kind: Literal["lasagna", "one_by_one", "free", "specialist"] = "lasagna"


def _checkpoint_alone(value: Any) -> Any:
    return {"checkpoint": value} if isinstance(value, str) else value


@checked(frozen=True, config=STRICT)
class SuiteSet:
    """One data set of a table.

    Attributes:
        reader: Its format: a name of `training.data.sources`, or "expressions" (texts made from the masks of a folder).
            None: in the folder layout "folder", or "expressions" in the tables of texts; else the data set's name.
        path: Its folder; None: below the suite's `data`.
        split: Which part of it.
        limit: At most so many images or records, evenly spread; None: the suite's.
        classes_from: Data set folders whose names are asked besides, as distractors.
        texts: "all" texts of a record, or the "first": for wordings that mean the same. None: "first" of expressions.
        task: How a checkpoint that holds conversations is asked about texts.
    """

    reader: str | None = None
    path: Path | None = None
    split: str = "val"
    limit: Count | None = None
    classes_from: tuple[Path, ...] = ()
    texts: Literal["all", "first"] | None = None
    task: Literal["referring", "reasoning"] | None = None


def _nothing(value: Any) -> Any:
    return {} if value is None else value


def _names_alone(value: Any) -> Any:
    return dict.fromkeys(value) if isinstance(value, list) else value


Sets = Annotated[dict[str, Annotated[SuiteSet, BeforeValidator(_nothing)]], BeforeValidator(_names_alone)]


@checked(frozen=True, config=STRICT)
class ChunkTable:
    """Table 6: which sizes on which sets."""

    sets: Sets
    sizes: tuple[str, ...] = ("N", "N/2", "N/3", "N/4")

    @model_validator(mode="after")
    def _known(self) -> "ChunkTable":
        for size in self.sizes:
            ChunkSize.parse(size)
        return self


@checked(frozen=True, config=STRICT)
class Suite:
    """A suite file.

    Attributes:
        output: Folder of the figures and tables.
        data: Root of the data sets; by default the setting `data` (LASAGNA_DATA).
        models: By the name that the tables give them.
        limit: Of every data set that has none of its own.
        batch_size: Images per call of a model.
        closed_set, open_set, referring, generalised: Data sets of the paper's Tables 1 to 4. Open set: those that no
            model of the suite was trained on.
        ablation: Folder of `lasagna experiment ablation`, whose report is Table 5.
        chunk_sizes: Table 6.
    """

    output: Path
    models: Annotated[dict[str, Annotated[Model, BeforeValidator(_checkpoint_alone)]], Field(min_length=1)]
    data: Path = field(default_factory=data_folder)
    limit: Count | None = None
    batch_size: Count = 4
    closed_set: Sets = field(default_factory=dict)
    open_set: Sets = field(default_factory=dict)
    referring: Sets = field(default_factory=dict)
    generalised: Sets = field(default_factory=dict)
    chunk_sizes: ChunkTable | None = None
    ablation: Path | None = None

    def sets(self, table: str) -> Mapping[str, SuiteSet]:
        found: Mapping[str, SuiteSet] = self.chunk_sizes.sets if table == "chunk_sizes" and self.chunk_sizes else {}
        return found if table == "chunk_sizes" else getattr(self, table)


def read_suite(path: Path, changes: Sequence[str] = ()) -> Suite:
    """Reads a suite, with changes of its values as of a recipe (`key=value`). Raises ConfigError that lists all
    errors."""
    file = YamlFile(path, "a suite is a list of keys and values; lab/paper/evaluations/nano.yaml is one")
    file.change(changes)
    return file.checked(Suite)


@dataclass(frozen=True)
class SuitePart:
    """One model on one data set for one table.

    Attributes:
        chunk: Table 6 alone: the size, as written.
    """

    table: str
    model: str
    data: str
    chunk: str | None = None

    @property
    def file(self) -> str:
        """The file of the part's figures, below the output folder."""
        names = [self.table, self.model, self.data, *([self.chunk] if self.chunk else [])]
        return "/".join(["parts", *(name.replace("/", "_of_").replace(" ", "_") for name in names)]) + ".json"


class Runner:
    """Computes the parts of a suite.

    Args:
        suite: What to measure.
        device, dtype: As of `Lasagna.from_pretrained`.
    """

    def __init__(self, suite: Suite, device: str = "auto", dtype: str = "auto") -> None:
        self.suite, self._device, self._dtype = suite, device, dtype
        self._loaded: tuple[tuple[str, str], Any] | None = None

    @cached_property
    def parts(self) -> list[SuitePart]:
        """Grouped by model, so that each is loaded once."""
        suite, found = self.suite, []
        for model, spec in suite.models.items():
            for table in (*SEMANTIC, *TEXTS):
                if spec.kind == "specialist" and table != "closed_set":
                    continue  # it has no other classes, no texts and no lists
                if table == "chunk_sizes" and spec.kind != "lasagna":
                    continue
                for data in suite.sets(table):
                    if table == "chunk_sizes" and suite.chunk_sizes:
                        found += [SuitePart(table, model, data, size) for size in suite.chunk_sizes.sizes]
                    else:
                        found.append(SuitePart(table, model, data))
        return found

    def check(self) -> None:
        """Opens every data set and finds every checkpoint. Raises ConfigError that lists all that is missing."""
        problems = []
        seen: set[Any] = set()
        for part in self.parts:
            for what, key in ((self._open, (part.table, part.data)), (self.version, (part.model, part.data))):
                if key in seen:
                    continue
                seen.add(key)
                try:
                    what(part)
                except LasagnaError as error:
                    problems.append(f"{part.table}, {part.model} on {part.data}: {error}")
        if problems:
            raise ConfigError("the suite needs what is not here:\n  " + "\n  ".join(problems))

    def finished(self, part: SuitePart) -> dict[str, Any] | None:
        """The figures of a part that was computed before, or None."""
        path = self.suite.output / part.file
        if not path.exists():
            return None
        saved = json.loads(path.read_text(encoding="utf-8"))
        return dict(saved["figures"]) if saved["key"] == self._key(part) else None

    def length(self, part: SuitePart) -> int:
        """Images or records that the part asks."""
        return len(spread(len(self._open(part)), self._limit(part)))

    def run(self, part: SuitePart, on_item: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Computes a part and keeps its figures."""
        figures = self._compute(part, on_item)
        saved = {"key": self._key(part), "version": self.version(part), "figures": figures}
        text = json.dumps(saved, indent=1, allow_nan=False, ensure_ascii=False)
        save_text(self.suite.output / part.file, text + "\n")
        return figures

    def results(self) -> Iterator[tuple[SuitePart, dict[str, Any]]]:
        """The parts that are finished."""
        for part in self.parts:
            figures = self.finished(part)
            if figures is not None:
                yield part, figures

    def _compute(self, part: SuitePart, on_item: Callable[[], None]) -> dict[str, Any]:
        suite, source, data = self.suite, self._open(part), self._data(part)
        model = self._load(part)
        if part.table in TEXTS:
            task = data.task or ("reasoning" if self._located(part).reader == "reasonseg" else "referring")
            texts = data.texts or ("first" if isinstance(source, Expressions) else "all")
            found = evaluate_texts(
                text_segmenter(model, task),
                source,
                limit=self._limit(part),
                batch_size=suite.batch_size,
                texts=texts,
                on_record=on_item,
            )
            return found.as_dict()
        names = [name for folder in data.classes_from for name in read_names(folder)]
        distractors = choose_distractors(part.data, source.classes, names)
        asked = len(source.classes) + len(distractors.names)
        chunk = ChunkSize.parse(part.chunk).classes(asked) if part.chunk else None
        with count_forwards(model) as forwards:
            evaluation = evaluate_dataset(
                model,
                source,
                distractors=distractors,
                limit=self._limit(part),
                batch_size=suite.batch_size,
                chunk_size=chunk,
                on_image=on_item,
            )
        figures = evaluation.as_dict()
        if chunk:
            figures |= {"classes_per_list": chunk, "lists": -(-asked // chunk), "forwards": forwards()}
        return figures

    def column(self, part: SuitePart) -> str:
        """The part's data set as the paper's columns name it ("refcoco testA"), or by its own name and split."""
        reader = self._located(part).reader
        name = part.data if SOURCES[reader].own else reader
        return f"{name} {self._data(part).split}"

    def _data(self, part: SuitePart) -> SuiteSet:
        return self.suite.sets(part.table)[part.data]

    def _limit(self, part: SuitePart) -> int | None:
        return self._data(part).limit or self.suite.limit

    def _located(self, part: SuitePart) -> LocatedSource:
        data, layout = self._data(part), "expressions" if part.table in TEXTS else "folder"
        return find_source(part.data, self.suite.data, reader=data.reader, path=data.path, layout=layout)

    def _open(self, part: SuitePart) -> Source:
        located = self._located(part)
        # One target as in RefCOCO; Table 4 is of all kinds.
        one_target = located.reader == "expressions" and part.table == "referring"
        options: dict[str, Any] = {"nothing": 0.0, "several": False} if one_target else {}
        return located.open(self._data(part).split, **options)

    def version(self, part: SuitePart) -> str:
        """The version of the part's checkpoint. Raises CheckpointError or ConfigError where there is none."""
        model = self.suite.models[part.model]
        if model.kind != "specialist":
            return checkpoint_version(model.checkpoint)
        path = Path(model.checkpoint) / part.data / "specialist.pt"
        if not path.exists():
            raise ConfigError(f"{path} is missing; `lasagna experiment specialist --out {model.checkpoint}` makes it")
        with path.open("rb") as file:
            return f"specialist-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"

    def _key(self, part: SuitePart) -> str:
        """All that the figures depend on, but the content of the data set and the code."""
        depends = {
            "version": self.version(part),
            "kind": self.suite.models[part.model].kind,
            "data": {
                **asdict(self._data(part)),
                "path": (self._data(part).path or self.suite.data / part.data).resolve(),
                "reader": self._located(part).reader,
            },
            "limit": self._limit(part),
            "table": part.table,
            "chunk": part.chunk,
        }
        text = json.dumps(depends, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _load(self, part: SuitePart) -> Any:
        """The model of a part; the last one is kept."""
        spec = self.suite.models[part.model]
        key = (part.model, part.data if spec.kind == "specialist" else "")
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # before the next one takes memory
            if spec.kind == "specialist":
                found: Any = Specialist.load(Path(spec.checkpoint) / part.data)
            else:
                model = Lasagna.from_pretrained(spec.checkpoint, device=self._device, dtype=self._dtype)
                found = answer_as(spec.kind, asked_everything(model))
            self._loaded = (key, found)
        return self._loaded[1]
