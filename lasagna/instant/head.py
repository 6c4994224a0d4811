"""The instant head: a numbered set of small weights beside a model, learnt from corrections within a second.

    judged = head.judge(maps, names, probability, said)      which classes are in the photo
    scores = head.scores(judged, mask_logits)                where they are; `lasagna.instant.painting` draws it

What always holds: while the gate has not let the head in, decisions and masks are the model's, and the head only
refines probabilities, on their side of one half; a class that no correction has keeps the model's answer; a head
refuses the features of another encoder, and the answers of another model.

As a file (safetensors): weight (K, D) float32, bias (K,) float32, and everything else as JSON under the key "head".
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lasagna.errors import CheckpointError
from lasagna.instant.correction import read_notes
from lasagna.instant.features import FeatureMaps
from lasagna.instant.gate import Decision
from lasagna.instant.leave_out import Shrinkage, stacked_presence
from lasagna.instant.presence import HEAD_FEATURES, Figures, Presence, map_features, model_logit
from lasagna.instant.stacking import Stacking, combine, head_log, model_log
from lasagna.instant.statistics import NONE

_FORMAT = 3


@dataclass(frozen=True, eq=False)
class Judged:
    """What a head says of the classes of one photo.

    Attributes:
        probability: float64 (C,).
        present: bool (C,).
        scores: float32 (P + 1, h, w): log p_head of the present classes and "none" on the grid.
        log_presence: float32 (P,), of the present classes.
    """

    probability: Figures
    present: NDArray[np.bool_]
    scores: Tensor
    log_presence: Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """Weights, and how they came about.

    Attributes:
        number: One more with every head of a project.
        encoder: Fingerprint of the encoder whose features it reads.
        version: Of the model that it stands beside, without a head; "" of a head that works alone.
        names: Classes of corrections, `NONE` among them.
        weight, bias: float32 (K, D) and (K,), in units of raw features, with the prior.
        shrinkage, stacking, unseen, presence: What leaving photos out chose; `unseen` is u of the stacking.
        unseen_presence: Of classes that no correction has, on the model's logit; None of a head that works alone.
        decision: The gate's.
        digest: SHA-256 of what it was learnt from: equal corrections give the equal digest.
    """

    number: int
    encoder: str
    version: str
    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    shrinkage: Shrinkage
    stacking: Stacking
    unseen: float
    presence: Presence
    unseen_presence: Presence | None
    decision: Decision
    digest: str

    @property
    def suffix(self) -> str:
        """What it adds to the model's version: "h12"."""
        return f"h{self.number}"

    @property
    def serves(self) -> bool:
        return self.decision.serves

    def check(self, encoder: str, version: str) -> None:
        """Raises CheckpointError where the head is of another encoder or another model."""
        if encoder != self.encoder:
            raise CheckpointError(
                f"this head reads the features of another encoder ({self.encoder}; the model's is {encoder}): "
                "a head fits one encoder only; learn from the corrected photos again"
            )
        if self.version not in ("", version):
            raise CheckpointError(
                f"this head was made beside {self.version}, the model is {version}: what it corrects is that model's "
                "answers; learn from the corrected photos again"
            )

    def judge(
        self,
        maps: FeatureMaps,
        names: list[str],
        probability: Figures | None,
        said: NDArray[np.bool_] | None,
        threshold: float | NDArray[np.float64] = 0.5,
    ) -> Judged:
        """Which classes are in a photo.

        Args:
            maps: The photo's features.
            names: C distinct labels.
            probability, said: (C,) the model's; None of a head that works alone.
            threshold: From which a class is present where the head serves: one, or (C,).
        """
        place = {name: i for i, name in enumerate(self.names)}
        every = [*names, NONE]
        seen = torch.tensor([name in place for name in every])
        rows = torch.tensor([place[name] for name in every if name in place], dtype=torch.long)
        weight, bias = (each[rows].to(maps.parts[0].device) for each in (self.weight, self.bias))
        known = maps.project(weight) + bias[:, None, None]
        features: Figures = np.zeros((len(names), HEAD_FEATURES))
        has = seen[:-1].numpy()
        if has.any():
            down, across = maps.covered
            own = known[:, :down, :across].flatten(1)
            features[has] = map_features(own)[: int(has.sum())]
        if probability is not None:
            features = np.column_stack([features, model_logit(probability)])
        stacked = stacked_presence(self.presence, self.unseen_presence, features, has)
        if self.serves:
            moved, present = stacked, stacked >= threshold
        else:
            assert probability is not None
            assert said is not None
            # The model draws: the probability may move, the decision not.
            present, refined = said, np.where(has, stacked, probability)
            moved = np.where(said, refined.clip(min=threshold), refined.clip(max=np.nextafter(threshold, 0)))
        chosen = torch.from_numpy(np.append(present, True))
        scores = known.new_zeros((len(every), *maps.grid))
        scores[seen] = known
        kept = head_log(scores, seen, self.unseen)[chosen]
        return Judged(moved, present, kept, torch.from_numpy(np.log(stacked[present])).float().to(known.device))

    @property
    def reads_masks(self) -> bool:
        """Whether `scores` needs the model's mask logits."""
        return self.stacking.kind != "head"

    def scores(self, judged: Judged, probability: Figures | None, mask_logits: Tensor | None) -> Tensor:
        """Log scores of the present classes and "none", on the grid: what `paint` draws.

        Args:
            probability: (C,) the model's, of all classes.
            mask_logits: (P, h, w) the model's, of the present classes; None where they are not read.
        """
        model = None
        if self.reads_masks:
            assert probability is not None
            assert mask_logits is not None
            own = torch.from_numpy(probability[judged.present]).float().to(mask_logits.device)
            model = model_log(own, mask_logits.float())
        combined = combine(self.stacking, model, judged.scores)
        combined[:-1] += judged.log_presence[:, None, None]
        return combined

    def to_bytes(self) -> bytes:
        """The file's content."""
        notes: dict[str, Any] = {
            "format": _FORMAT,
            "number": self.number,
            "encoder": self.encoder,
            "version": self.version,
            "names": self.names,
            "shrinkage": asdict(self.shrinkage),
            "stacking": asdict(self.stacking),
            "unseen": self.unseen,
            "presence": self.presence.to_dict(),
            "unseen_presence": None if self.unseen_presence is None else self.unseen_presence.to_dict(),
            "decision": self.decision.to_dict(),
            "digest": self.digest,
        }
        return save({"weight": self.weight, "bias": self.bias}, {"head": json.dumps(notes)})

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "the head") -> "Head":
        """Raises CheckpointError where the bytes are no whole head of this format."""
        try:
            tensors, notes = load(data), read_notes(data, "head")
            if notes.get("format") != _FORMAT:
                raise ValueError(f"its format is {notes.get('format')}, this version reads {_FORMAT}")
            return cls(
                int(notes["number"]),
                notes["encoder"],
                notes["version"],
                tuple(notes["names"]),
                tensors["weight"],
                tensors["bias"],
                Shrinkage(**notes["shrinkage"]),
                Stacking(**notes["stacking"]),
                float(notes["unseen"]),
                Presence.from_dict(notes["presence"]),
                None if notes["unseen_presence"] is None else Presence.from_dict(notes["unseen_presence"]),
                Decision.from_dict(notes["decision"]),
                notes["digest"],
            )
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{where} cannot be read ({error}); make it again with `lasagna learn`") from error

    @classmethod
    def load(cls, path: Path | str) -> "Head":
        """Raises CheckpointError where the file is missing or damaged."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: no head can be read there ({error.strerror})") from error
        return cls.from_bytes(data, str(path))
