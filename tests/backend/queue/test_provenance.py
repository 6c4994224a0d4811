"""What predictions were made of, and which of them are outdated: records of a real Redis."""

import json
from typing import Any

import pytest

from backend.queue.freshness import Freshness, Reasons
from backend.queue.made import Made, data_digest
from backend.queue.provenance import Provenance
from backend.queue.store import Project, Store, Work
from backend.queue.works import work_of
from backend.studio.client import StudioTask
from lasagna.formats.hygiene import Hygiene
from lasagna.labels.configuration import LabelConfig, parse_label_config
from lasagna.labels.question import ProjectQuestion, name_version
from lasagna.settings import Settings
from tests.backend.backend_helpers import PROJECT


def config_of(*names: str) -> LabelConfig:
    labels = "".join(f'<Label value="{name}"/>' for name in names)
    return parse_label_config(
        f"""<View><Image name="image" value="$image"/>
        <BrushLabels name="b" toName="image" value="$more">{labels}</BrushLabels></View>"""
    )


CONFIG = config_of("sky", "cat")
SETTINGS = Settings.load({})


@pytest.fixture
def provenance(store: Store) -> Provenance:
    return Provenance(store)


def question_of(provenance: Provenance, config: LabelConfig = CONFIG) -> ProjectQuestion:
    return provenance.question_of(PROJECT, config, SETTINGS)


def delivered(
    store: Store, task: int, version: str, data: dict[str, Any], *, posted: bool, images: Any = ("aa",)
) -> None:
    """A prediction that was posted, or went along with an answer."""
    work = work_of(CONFIG, {"id": task, "data": data}, PROJECT, "c", version)
    [registration] = store.register([work], lease=0 if posted else 30)
    store.start([registration.key], "job")
    store.finish(registration.key, {"result": []}, "", Made(version, data_digest(work.data), list(images)))
    assert Provenance(store).made(PROJECT, [task]) == [None], "not delivered yet"
    if posted:
        post = next(iter(store.take_posts()), None)
        assert post is not None
        store.posted(post.key, 7)
    else:
        assert store.collect([registration])[0][0] == "prediction"


@pytest.mark.parametrize("posted", [True, False])
def test_what_was_delivered(store: Store, provenance: Provenance, posted: bool) -> None:
    delivered(store, 1, "v~000001", {"image": "/a.png"}, posted=posted)
    delivered(store, 2, "v~000001", {"image": "/b.png"}, posted=posted)
    assert provenance.made_by(PROJECT) == {"v~000001": 2}
    [made, _, none] = provenance.made(PROJECT, [1, 2, 3])
    assert made == Made("v~000001", data_digest(json.dumps({"image": "/a.png"})), ["aa"])
    assert none is None
    assert "made" not in store.fields([store.keys("done")[0]])[0]


def test_a_newer_prediction_takes_the_place(store: Store, provenance: Provenance) -> None:
    delivered(store, 1, "v~000001", {"image": "/a.png"}, posted=True)
    provenance.forget_tasks(PROJECT, [1])
    assert provenance.made_by(PROJECT) == {}
    delivered(store, 1, "v~000001", {"image": "/b.png"}, posted=True)
    work = work_of(CONFIG, {"id": 1, "data": {"image": "/b.png"}}, PROJECT, "c", "v~000002")
    [registration] = store.register([work], lease=0)
    store.start([registration.key], "job")
    store.finish(registration.key, {"result": []}, "", Made("v~000002", "d"))
    post = next(iter(store.take_posts()), None)
    assert post is not None
    store.posted(post.key, 8)
    assert provenance.made_by(PROJECT) == {"v~000002": 1}
    provenance.forget_tasks(PROJECT, [1, 2])
    assert provenance.made_by(PROJECT) == {}
    assert provenance.made(PROJECT, [1]) == [None]


def test_the_question_of_a_project(store: Store, provenance: Provenance) -> None:
    first, second = question_of(provenance), question_of(provenance, config_of("sky"))
    assert provenance.question_now(PROJECT) is None
    assert [provenance.note(PROJECT, one) for one in (first, first, second, second, first)] == [
        False,
        False,
        True,
        False,
        True,
    ]
    assert provenance.question_now(PROJECT) == first
    assert provenance.question(second.digest) == second
    assert provenance.question("000000") is None
    store.keep_project(PROJECT, Project(params={"threshold": 0.9}))
    assert question_of(provenance).params == {"threshold": 0.9}


def test_the_worker_says_what_it_leaves_out(store: Store, provenance: Provenance) -> None:
    settings = Settings.load({"LASAGNA_MIN_AREA": "5"})
    assert provenance.hygiene(settings).min_area == 5
    store.publish_model({"version": "v", "left_out": {"min_area": 9}})
    assert provenance.hygiene(settings) == Hygiene(min_area=9)


def test_another_image_under_the_same_address(store: Store, provenance: Provenance) -> None:
    delivered(store, 1, "v~000001", {"image": "/a.png"}, posted=True, images=["a" * 16, "b" * 16])
    assert not provenance.saw_image(PROJECT, None, "c" * 64)
    assert not provenance.saw_image(PROJECT, 2, "c" * 64)
    assert not provenance.saw_image(PROJECT, 1, "b" * 64)
    assert provenance.saw_image(PROJECT, 1, "c" * 64)
    [made] = provenance.made(PROJECT, [1])
    assert made is not None
    assert made.data == ""
    assert not provenance.saw_image(PROJECT, 1, "c" * 64), "noted already"


class TestFreshness:
    def judge(self, provenance: Provenance, *versions: str, data: Any = None, made: Made | None = None) -> str:
        """Why predictions of these versions are outdated where CONFIG is asked of version v+h2; "" where not."""
        question = question_of(provenance)
        version = name_version("v+h2", question)
        named = {"now": version, "older": name_version("v+h1", question)}
        store = provenance._store
        if made is not None:
            store.redis.hset(f"lasagna:made:{PROJECT}", "1", json.dumps({**made.__dict__, "version": version}))
        task = StudioTask(1, data or {"image": "/a.png"}, frozenset(named.get(v, v) for v in versions), False)
        reasons = Reasons(provenance, version, question, {"roof": "cat"})
        [why] = Freshness(provenance, PROJECT, CONFIG, reasons).outdated([task])
        return "" if why is None else f"{why.kind}: {why.words}"

    def test_what_is_up_to_date(self, provenance: Provenance) -> None:
        assert self.judge(provenance) == ""
        assert self.judge(provenance, "now") == ""
        assert self.judge(provenance, "now", "yolo-v8", "v") == ""
        same = Made("", data_digest(json.dumps({"image": "/a.png"})))
        assert self.judge(provenance, "now", made=same) == ""
        assert self.judge(provenance, "now", made=same, data={"image": "/a.png", "note": "x"}) == ""

    def test_what_is_not(self, provenance: Provenance) -> None:
        assert self.judge(provenance, "yolo-v8", "w~000001") == "version: another version serves the project"
        assert self.judge(provenance, "older") == "head: more corrections were learnt"
        assert (
            self.judge(provenance, "v") == "question: it is not known under which labels and parameters they were made"
        )
        before = config_of("sky", "roof", "dog")
        provenance.note(PROJECT, question_of(provenance, before))
        old = name_version("v+h1", question_of(provenance, before))
        words = "labels: the label 'roof' is called 'cat' now; the label 'dog' was removed"
        assert self.judge(provenance, old, "v", "yolo-v8") == words

    @pytest.mark.parametrize(
        "data",
        [
            {"image": "/b.png"},
            {"image": "/a.png", "more": [{"value": "dog"}]},
        ],
    )
    def test_the_task_shows_something_else(self, provenance: Provenance, data: dict[str, Any]) -> None:
        made = Made("", data_digest(json.dumps({"image": "/a.png"})))
        words = "image: the task's image was replaced, or its own labels were changed"
        assert self.judge(provenance, "now", made=made, data=data) == words
        assert self.judge(provenance, "now", made=Made("", "")) == words

    def test_counted(self, provenance: Provenance) -> None:
        question = question_of(provenance)
        version = name_version("v", question)
        reasons = Reasons(provenance, version, question)
        fresh, why = reasons.counted({version: 3, "w": 2, "u~000001": 1, name_version("v+h1", question): 4})
        assert fresh == 3
        assert [(one.kind, count) for one, count in why] == [("head", 4), ("version", 3)]


def test_a_work_without_a_task_is_not_noted(store: Store, provenance: Provenance) -> None:
    [registration] = store.register([Work(PROJECT, None, "{}", "c", "v")], lease=30)
    store.start([registration.key], "job")
    store.finish(registration.key, {"result": []}, "", Made("v", "d"))
    store.collect([registration])
    assert provenance.made_by(PROJECT) == {}
