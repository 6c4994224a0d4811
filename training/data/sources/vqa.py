"""LLaVA-Instruct-150k: conversations about COCO photos, without masks.

    llava_dataset/llava_instruct_150k.json   [{id, image, conversations: [{from: human | gpt, value}, ...]}, ...]
    coco/train2017/IMAGE                     the photos

Source: the LLaVA project's data set page; the folders, below one root, are those of LISA's training code.

What always holds: `turns` are whole (question, answer) pairs, without the token `<image>` that marks where LLaVA reads
the photo. A conversation that is not human and gpt in turn is left out and listed in `skipped`.
"""

from pathlib import Path
from typing import Any

from lasagna.errors import DataError
from training.data.records import Record, require_files
from training.data.sources.annotations import read_json

_WHAT = "LLaVA-Instruct-150k (llava_dataset/llava_instruct_150k.json) with COCO's photos (coco/train2017)"
_IMAGE_TOKEN = "<image>"


class LlavaInstruct:
    """LLaVA-Instruct, whose one split is "train".

    Attributes:
        classes: Empty: these are texts.
        skipped: Image id -> why the conversation is left out.
    """

    def __init__(self, root: Path, split: str) -> None:
        """Reads every conversation.

        Raises:
            DataError: Files are missing or damaged, or there is no such split.
        """
        if split != "train":
            raise DataError(f"{root}: LLaVA-Instruct-150k has no split {split!r}; there is train")
        path, photos = root / "llava_dataset" / "llava_instruct_150k.json", root / "coco" / "train2017"
        require_files(_WHAT, root, [path, photos])
        items = read_json(path)
        self.classes: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}
        self._records: list[Record] = []
        try:
            for position, item in enumerate(items):
                image_id = f"{item['id']}-{position}"  # a photo has several conversations under its own id
                image = photos / item["image"] if item.get("image") else None
                try:
                    turns = _turns(item["conversations"])
                except ValueError as error:
                    self.skipped[image_id] = str(error)
                else:
                    self._records.append(Record("llava_instruct_150k", image_id, image, turns=turns))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not LLaVA's list of conversations ({error!r}); download it again") from error
        require_files(_WHAT, root, sorted({record.image_path for record in self._records if record.image_path}))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


def _turns(conversation: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Questions and answers. A first turn of gpt is dropped, as in the published training code. Raises ValueError."""
    turns = [(turn["from"], turn["value"].replace(_IMAGE_TOKEN, "").strip()) for turn in conversation]
    if turns and turns[0][0] == "gpt":
        turns = turns[1:]
    speakers = [speaker for speaker, _ in turns]
    if not turns or speakers != ["human", "gpt"] * (len(turns) // 2):
        raise ValueError(f"human and gpt do not take turns: {', '.join(speakers) or 'nobody speaks'}")
    if not all(text for _, text in turns):
        raise ValueError("a turn without text")
    texts = [text for _, text in turns]
    return tuple(zip(texts[::2], texts[1::2], strict=True))
