"""A model of any kind, judged by the gate against what serves a project: on corrections that neither was trained on.

What always holds: both models are asked through the contract alone, so it does not matter of which architecture they
are; photos that either was trained on in this project are left out; each answers as it would serve: beside its instant
head where the project has one and the model can learn at once. Nothing changes what serves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.loop.recheck import photo_hash
from backend.loop.snapshot import Snapshot
from backend.registry.records import project_number
from backend.registry.registry import Registry, Version
from backend.registry.trained import trained_photos
from lasagna import Lasagna
from lasagna.checkpoint.folder import checkpoint_version, find_checkpoint
from lasagna.contract.model import ClassListAnswerer, ClassListModel
from lasagna.errors import DataError, RegistryError
from lasagna.models.loading import is_calibrated
from training.data.records import Record
from training.data.sources.label_studio import LabelStudioExport
from training.evaluation.gate import Limits, Verdict, judge
from training.evaluation.gate_report import choose_samples, make_samples, write_report
from training.evaluation.scores import measure_latency, objects_in_words, score_images
from training.instant.left_out import LeaveOneOut

_TIMED = 6
"""Photos that latency is measured on."""


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        folder: Of the checkpoint.
        version: In the registry; None: a checkpoint outside of it.
        trained: Hashes of the project's photos that it was trained on.
    """

    folder: Path
    version: Version | None
    trained: frozenset[str]

    @property
    def id(self) -> str:
        """What its predictions are called."""
        return self.version.id if self.version else checkpoint_version(self.folder)


def side_of(registry: Registry, snapshots: Path, name: str) -> Side:
    """A model that may have been trained on a project's photos.

    Args:
        snapshots: Folder of the project's snapshots.
        name: Its id in the registry, or any name that `find_checkpoint` takes.

    Raises:
        CheckpointError: There is none of this name.
        DataError: It was trained on corrections, and nobody can tell any more on which.
    """
    try:
        version = registry.version(name)
    except RegistryError:
        return Side(find_checkpoint(name), None, frozenset())
    if not version.snapshot:
        return Side(version.checkpoint, version, frozenset())
    trained = trained_photos(snapshots / version.snapshot)
    if trained is None:
        raise DataError(
            f"{version.id} was trained on the corrections of snapshot {version.snapshot}, which is gone from "
            f"{snapshots}: nobody can tell which photos are new to it, so it cannot be judged on this project"
        )
    return Side(version.checkpoint, version, frozenset(trained))


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        reports: `report.html` and `report.json`.
        left_out: Corrected photos that one of the two was trained on.
    """

    verdict: Verdict
    reports: tuple[Path, Path]
    left_out: int


def corrections(snapshot: Snapshot) -> list[Record]:
    """Every corrected photo of an undivided snapshot."""
    source = LabelStudioExport(snapshot.folder, "train")
    return [source[i] for i in range(len(source))]


def challenge(
    project: str,
    sides: tuple[Side, Side],
    models: tuple[ClassListModel, ClassListModel],
    records: Sequence[Record],
    out: Path,
    *,
    learns_at_once: bool,
    limits: Limits,
    advance: Callable[[], None] = lambda: None,
) -> Outcome:
    """Judges a candidate and writes the gate's report.

    Args:
        project: Its uid.
        sides: Champion and candidate.
        models: The same, loaded.
        records: Corrected photos (`corrections`).
        out: Folder of the report.
        learns_at_once: Whether the project has an instant head beside its model.
        advance: Called `steps` times.

    Raises:
        DataError: Both were trained on all photos, or none can be read.
    """
    known = sides[0].trained | sides[1].trained
    held = [record for record in records if photo_hash(record) not in known]
    if not held:
        raise DataError(
            f"all {len(records)} corrected photos of project {project_number(project)} were trained on by one of the "
            "two; correct some more, which are new to both"
        )
    served = [
        _as_it_serves(model, side, records, learns_at_once, advance) for model, side in zip(models, sides, strict=True)
    ]
    before, after = (score_images(each, held, advance) for each in served)
    verdict = judge(before, after, latency=measure_latency(*models, held, _TIMED), limits=limits)
    about = {"project": project_number(project), "photos": f"{len(held)} corrected, new to both models"}
    if len(records) > len(held):
        about["left out"] = f"{len(records) - len(held)} that one of the two was trained on"
    for name, model, each in zip(("champion", "candidate"), models, served, strict=True):
        about |= _facts(name, model, each, learns_at_once)
    if objects := objects_in_words(before, after):
        about["objects"] = objects
    samples = make_samples(held, choose_samples(before, after), *served)
    reports = write_report(verdict, samples, out, versions=(sides[0].id, sides[1].id), about=about)
    return Outcome(verdict, reports, len(records) - len(held))


def steps(models: Sequence[ClassListModel], sides: Sequence[Side], records: Sequence[Record], learns: bool) -> int:
    """How often `challenge` advances, at most."""
    known = sides[0].trained | sides[1].trained
    held = sum(photo_hash(record) not in known for record in records)
    return sum(held + (len(records) if learns and model.abilities.instant else 0) for model in models)


def _as_it_serves(
    model: ClassListModel, side: Side, records: Sequence[Record], learns: bool, advance: Callable[[], None]
) -> ClassListAnswerer:
    if not (learns and isinstance(model, Lasagna)):
        return model
    return LeaveOneOut(model, records, lambda record: photo_hash(record) not in side.trained, advance)


def _facts(name: str, model: ClassListModel, served: ClassListAnswerer, learns: bool) -> dict[str, str]:
    """What the top of the report says of one of the two."""
    facts = {f"probabilities of the {name}": _calibrated(model)}
    if isinstance(served, LeaveOneOut):
        facts[f"instant head of the {name}"] = served.reason
    elif learns:
        facts[f"instant head of the {name}"] = "none: it cannot learn from each correction at once"
    return facts


def _calibrated(model: ClassListModel) -> str:
    if is_calibrated(model):
        return "calibrated (calibration.json in its folder)"
    return "not calibrated: the model's own scores; `lasagna calibrate RECIPE --model FOLDER` fits them"
