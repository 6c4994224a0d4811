"""Questions in a smart TextArea: what is asked, how it is answered, and what a model says that answers none."""

import json
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from backend.queue.store import Project, Store
from backend.worker.questions import Question, parse_question
from backend.worker.runtime import Runtime
from lasagna import Lasagna
from lasagna.labels.configuration import parse_label_config
from lasagna.settings import Settings
from tests.backend.backend_helpers import PROJECT, TOKEN, StubLabelStudio

CONFIG = (files("label_config") / "question.xml").read_text(encoding="utf-8")
[IMAGE] = parse_label_config(CONFIG).of_task({"image": "/data/upload/3/1.png"})


def written(text: Any, **value: Any) -> dict[str, Any]:
    """What Label Studio sends of a text field."""
    return {
        "id": "q1",
        "from_name": "question",
        "to_name": "image",
        "type": "textarea",
        "value": {"text": text, **value},
    }


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (written(["the person on the left"]), Question("the person on the left", "Person", IMAGE)),
        (written(["What is there?"]), Question("What is there?", None, IMAGE)),
        (written("the tree"), Question("the tree", "Tree", IMAGE)),
        (written(["the carpet"]), Question("the carpet", None, IMAGE)),
        (written(["left one"], brushlabels=["Car"]), Question("left one", "Car", IMAGE)),
        (written(["two  lines,", "a sky."]), Question("two lines, a sky.", "Sky", IMAGE)),
        (written([" "]), None),
        (written(None), None),
        ({**written(["the tree"]), "from_name": "answer"}, None),
        ("text", None),
    ],
    ids=[
        "named",
        "none named",
        "a string",
        "within a word",
        "of a region",
        "lines",
        "blank",
        "no text",
        "other",
        "odd",
    ],
)
def test_what_is_asked(region: Any, expected: Question | None) -> None:
    assert parse_question([region], [IMAGE]) == expected


def test_a_question_mark_asks_for_words() -> None:
    assert (Question("what?", None, IMAGE).task, Question("the dog", None, IMAGE).task) == ("vqa", "referring")


class TestAnswers:
    @pytest.fixture(params=["paper", "released"])
    def model(self, request: pytest.FixtureRequest) -> Lasagna:
        return Lasagna.random(0, request.param)

    @pytest.fixture
    def runtime(self, model: Lasagna, settings: Settings, store: Store, stub: StubLabelStudio) -> Runtime:
        store.keep_project(PROJECT, Project(stub.url, TOKEN))
        stub.add_tasks(1)
        return Runtime(model, settings, store)

    def answer(self, runtime: Runtime, text: str, config: str = CONFIG) -> dict[str, Any]:
        key = runtime.store.keep_config(config)
        data = json.dumps({"image": "/data/upload/3/1.png"})
        request = {"project": PROJECT, "version": runtime.model.version, "task": 1, "config": key, "data": data}
        return runtime.click({**request, "context": [written([text])]})

    def test_words_are_those_of_ask(self, runtime: Runtime, model: Lasagna, stub: StubLabelStudio) -> None:
        import io

        from PIL import Image

        image = Image.open(io.BytesIO(stub.images["/data/upload/3/1.png"])).convert("RGB")
        expected = model.ask(image, "What is there?", max_new_tokens=128)
        words = self.answer(runtime, "What is there?")["prediction"]["result"][-1]
        assert (words["from_name"], words["to_name"], words["type"]) == ("answer", "image", "textarea")
        assert words["value"]["text"][0].startswith(expected.text)

    def test_masks_are_drawn_with_the_label(
        self, runtime: Runtime, model: Lasagna, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lasagna.network.generate import TextAnswer

        asked = []

        def ask(features: Any, question: str, *, task: str, max_new_tokens: int) -> TextAnswer:
            asked.append((question, task))
            masks = np.zeros((2, 48, 64), bool)
            masks[0, 4:20, 4:30] = masks[1, 24:40, 34:60] = True
            return TextAnswer("It is <SEG> <SEG>.", tuple(masks), (), True, 2)

        monkeypatch.setattr(model, "ask_features", ask)
        drawn, words = self.answer(runtime, "each person")["prediction"]["result"]
        assert asked == [("each person", "referring")]
        assert (drawn["from_name"], drawn["value"]["brushlabels"]) == ("brush", ["Person"])
        assert words["value"]["text"] == ["It is <SEG> <SEG>."]
        [words] = self.answer(runtime, "the thing")["prediction"]["result"]
        assert "name one of the labels" in words["value"]["text"][0]

    def test_a_model_without_answers_says_so(self, settings: Settings, store: Store, stub: StubLabelStudio) -> None:
        nano = Lasagna.from_pretrained("nano", device="cpu")
        store.keep_project(PROJECT, Project(stub.url, TOKEN))
        stub.add_tasks(1)
        runtime = Runtime(nano, settings, store)
        [words] = self.answer(runtime, "the dog")["prediction"]["result"]
        assert words["value"]["text"][0].startswith(f"{nano.version} cannot answer this: ")
        silent = CONFIG.replace('name="answer"', 'name="notes"')
        assert "was not trained" in self.answer(runtime, "the dog", silent)["error"]
