"""What the worker does with the model: batches, the cache of results, clicks. With a tiny random model."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pillow_heif
import pytest
from PIL import Image

from backend.queue.store import Project, Store, Work
from backend.queue.works import work_of
from backend.studio.version_names import base_version
from backend.web.predictions import Predictor, label_config
from backend.worker.clicks import Prompt, parse_prompt
from backend.worker.kept_features import KeptFeatures
from backend.worker.runtime import Runtime
from lasagna import Lasagna
from lasagna.errors import ConfigError
from lasagna.labels.configuration import TaskImage, parse_label_config
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, StubLabelStudio, png

[IMAGE] = label_config(CONFIG).of_task({"image": "/data/upload/3/1.png"})


class CountingLasagna(Lasagna):
    """The model, with a list of the batches that it was asked."""

    batches: list[int]
    encoded: int

    def segment_batch(self, images: Sequence[Any], class_lists: Sequence[Any], **options: Any) -> Any:
        self.batches.append(len(images))
        return super().segment_batch(images, class_lists, **options)

    def encode_image(self, image: Any) -> Any:
        self.encoded += 1
        return super().encode_image(image)


@pytest.fixture(scope="module")
def loaded(checkpoint: Any) -> CountingLasagna:
    model = CountingLasagna.from_pretrained(checkpoint, device="cpu")
    assert isinstance(model, CountingLasagna)
    return model


@pytest.fixture
def model(loaded: CountingLasagna) -> CountingLasagna:
    loaded.batches, loaded.encoded = [], 0
    return loaded


@pytest.fixture
def runtime(model: CountingLasagna, settings: Settings, store: Store, stub: StubLabelStudio) -> Runtime:
    store.keep_project(PROJECT, Project(stub.url, TOKEN, params={"threshold": 0.01}))  # everything present
    return Runtime(model, settings, store)


def ask(runtime: Runtime, tasks: list[dict[str, Any]], config: str = CONFIG) -> list[Work]:
    key = runtime.store.keep_config(config)
    works = [work_of(label_config(config), task, PROJECT, key, runtime.model.version) for task in tasks]
    runtime.store.register(works, lease=0)
    return works


def states(runtime: Runtime, works: list[Work]) -> list[str]:
    return runtime.store.states([work.key for work in works])


def predict(runtime: Runtime, works: list[Work]) -> dict[str, int]:
    return runtime.predict([work.key for work in works], "job")


class TestBatches:
    def test_a_batch_goes_to_the_model_at_once(self, runtime: Runtime, model: Any, stub: StubLabelStudio) -> None:
        works = ask(runtime, stub.add_tasks(3))
        assert predict(runtime, works)["predicted"] == 3
        assert model.batches == [3]
        post = next(iter(runtime.store.take_posts()), None)
        assert post is not None
        assert base_version(post.prediction["model_version"]) == model.version
        drawn = {(region["from_name"], region["type"]) for region in post.prediction["result"]}
        assert drawn <= {("brush", "brushlabels"), ("poly", "polygonlabels"), ("rect", "rectanglelabels")}
        assert ("brush", "brushlabels") in drawn

    def test_the_same_image_is_computed_once(self, runtime: Runtime, model: Any, stub: StubLabelStudio) -> None:
        predict(runtime, ask(runtime, stub.add_tasks(3, same_image=True)))
        assert model.batches == [1]
        later = ask(runtime, stub.add_tasks(2, first=4, same_image=True))
        assert predict(runtime, later)["cached"] == 2
        assert model.batches == [1]

    def test_a_photo_of_a_phone(self, runtime: Runtime, stub: StubLabelStudio) -> None:
        """HEIC, turned: regions are those of the upright photo."""
        [task] = stub.add_tasks(1)
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        photo = pillow_heif.from_pillow(Image.open(io.BytesIO(png(1))).convert("RGB").resize((160, 96)))
        photo.save(file, exif=exif.tobytes())
        stub.images[task["data"]["image"]] = file.getvalue()
        assert predict(runtime, ask(runtime, [task]))["predicted"] == 1
        [post] = runtime.store.take_posts()
        sizes = {(one["original_width"], one["original_height"]) for one in post.prediction["result"]}
        assert sizes == {(96, 160)}

    @pytest.mark.parametrize("where", ["configuration", "extra parameters"])
    def test_a_threshold_of_a_label(self, runtime: Runtime, stub: StubLabelStudio, where: str) -> None:
        """Everything is present at 0.01; a dog has to be all but certain."""
        never = 1 - 1e-9
        config = CONFIG
        if where == "configuration":
            config = CONFIG.replace('<Label value="Dog"/>', f'<Label value="Dog" threshold="{never}"/>', 1)
        else:
            params = {"threshold": 0.01, "thresholds": {"Dog": never, "gone": 0.5}}
            runtime.store.keep_project(PROJECT, Project(stub.url, TOKEN, params=params))
        predict(runtime, ask(runtime, stub.add_tasks(1), config))
        post = next(iter(runtime.store.take_posts()), None)
        assert post is not None
        drawn = {label for r in post.prediction["result"] for label in r["value"].get(r["type"], ())}
        assert drawn == {"Cat", "Sky"}

    @pytest.mark.parametrize(
        "change",
        [
            lambda runtime, stub: stub.images.update({"/data/upload/3/1.png": png(99)}),
            lambda runtime, stub: runtime.store.keep_project(PROJECT, Project(stub.url, TOKEN)),
        ],
        ids=["image", "parameters"],
    )
    def test_another_image_or_parameter_is_computed_anew(
        self, runtime: Runtime, model: Any, stub: StubLabelStudio, change: Any
    ) -> None:
        tasks = stub.add_tasks(1)
        works = ask(runtime, tasks)
        predict(runtime, works)
        post = next(iter(runtime.store.take_posts()), None)
        assert post is not None
        runtime.store.posted(post.key, 1)
        change(runtime, stub)
        again = ask(runtime, [{**tasks[0], "id": 2}])
        predict(runtime, again)
        assert model.batches == [1, 1]

    @pytest.mark.parametrize("precision", [{"dtype": "bfloat16"}, {"quantise": "int8"}, {"quantise": "int4"}], ids=str)
    def test_another_precision_is_computed_anew(
        self, runtime: Runtime, model: Any, checkpoint: Any, settings: Settings, stub: StubLabelStudio, precision: Any
    ) -> None:
        tasks = stub.add_tasks(1)
        predict(runtime, ask(runtime, tasks))
        restarted = [CountingLasagna.from_pretrained(checkpoint, device="cpu", **precision) for _ in range(2)]
        found = []
        for number, other in enumerate(restarted):
            assert isinstance(other, CountingLasagna)
            other.batches = []
            assert other.version == model.version
            works = ask(runtime, [{**tasks[0], "id": 9 + number}])
            found.append(predict(Runtime(other, settings, runtime.store), works))
        assert [counts["predicted"] for counts in found] == [1, 0]
        assert [counts["cached"] for counts in found] == [0, 1]

    def test_what_the_settings_leave_out(
        self, model: Any, settings: Settings, store: Store, stub: StubLabelStudio, runtime: Runtime
    ) -> None:
        tasks = stub.add_tasks(1)
        predict(runtime, ask(runtime, tasks))
        whole = next(iter(store.take_posts()), None)
        strict = settings.replaced(max_regions=2, max_region_bytes=10)
        predict(Runtime(model, strict, store), ask(runtime, [{**tasks[0], "id": 9}]))
        limited = next(iter(store.take_posts()), None)
        assert whole is not None
        assert limited is not None
        assert model.batches == [1, 1], "what is left out is part of the cache's key"
        kinds = [{region["type"] for region in post.prediction["result"]} for post in (whole, limited)]
        assert "brushlabels" in kinds[0]
        assert "polygonlabels" in kinds[1]
        parts = [sum(r["type"] == "polygonlabels" for r in post.prediction["result"]) for post in (whole, limited)]
        assert parts[0] > parts[1]

    def test_only_what_changes_the_answer_counts(self, runtime: Runtime, model: Any, stub: StubLabelStudio) -> None:
        tasks = stub.add_tasks(1)
        predict(runtime, ask(runtime, tasks))
        coloured = CONFIG.replace('<Label value="Cat"/>', '<Label value="Cat" background="red"/>')
        predict(runtime, ask(runtime, tasks, coloured))
        assert model.batches == [1]
        renamed = CONFIG.replace('<Label value="Sky"/>', '<Label value="Sky" hint="clouds"/>')
        predict(runtime, ask(runtime, tasks, renamed))
        assert model.batches == [1, 1]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"this is text", "is not an image"),
            (png(1)[:200], "damaged or incomplete"),
            (None, "answered 404"),
        ],
        ids=["text", "truncated", "missing"],
    )
    def test_a_bad_image_fails_alone(
        self, runtime: Runtime, model: Any, stub: StubLabelStudio, content: bytes | None, words: str
    ) -> None:
        works = ask(runtime, stub.add_tasks(3))
        if content is None:
            del stub.images["/data/upload/3/2.png"]
        else:
            stub.images["/data/upload/3/2.png"] = content
        assert predict(runtime, works)["failed"] == 1
        assert states(runtime, works) == ["ready", "failed", "ready"]
        assert words in runtime.store.fields([works[1].key])[0]["reason"]
        assert model.batches == [2]

    def test_too_many_pixels(self, model: Any, store: Store, stub: StubLabelStudio, redis_db: str) -> None:
        settings = Settings.load({"LASAGNA_REDIS_URL": redis_db, "LASAGNA_MAX_IMAGE_PIXELS": "100"})
        store.keep_project(PROJECT, Project(stub.url, TOKEN))
        runtime = Runtime(model, settings, store)
        works = ask(runtime, stub.add_tasks(1))
        predict(runtime, works)
        assert "LASAGNA_MAX_IMAGE_PIXELS" in store.fields([works[0].key])[0]["reason"]

    def test_an_image_that_the_model_cannot_take_fails_alone(
        self, runtime: Runtime, model: Any, stub: StubLabelStudio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        works = ask(runtime, stub.add_tasks(3))
        stub.images["/data/upload/3/2.png"] = png(2, size=(13, 17))
        whole = CountingLasagna.segment_batch

        def segment_batch(self: Any, images: Any, class_lists: Any, **options: Any) -> Any:
            if any(image.size == (13, 17) for image in images):
                raise RuntimeError("CUDA out of memory")
            return whole(self, images, class_lists, **options)

        monkeypatch.setattr(CountingLasagna, "segment_batch", segment_batch)
        predict(runtime, works)
        assert states(runtime, works) == ["ready", "failed", "ready"]
        assert "CUDA out of memory" in runtime.store.fields([works[1].key])[0]["reason"]

    def test_label_studio_gone_is_tried_later(self, runtime: Runtime, stub: StubLabelStudio) -> None:
        works = ask(runtime, stub.add_tasks(2))
        stub.stop()
        assert predict(runtime, works)["later"] == 2
        assert states(runtime, works) == ["queued", "queued"]

    def test_an_image_of_which_nothing_came_is_tried_again(
        self, runtime: Runtime, stub: StubLabelStudio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        works = ask(runtime, stub.add_tasks(2))
        stub.images["/data/upload/3/2.png"] = b""  # of a server that was killed in the middle of its answer
        counts = predict(runtime, works)
        assert (counts["predicted"], counts["later"]) == (1, 1)
        assert states(runtime, works) == ["ready", "queued"]
        assert "is empty" in runtime.store.fields([works[1].key])[0]["reason"]
        stub.images["/data/upload/3/2.png"] = png(2)
        assert predict(runtime, works[1:])["predicted"] == 1
        monkeypatch.setattr("backend.worker.runtime._DOUBT_SECONDS", 1e-9)  # then it is what is there
        works = ask(runtime, stub.add_tasks(1, first=3))
        stub.images["/data/upload/3/3.png"] = b""
        assert predict(runtime, works)["later"] == 1
        assert predict(runtime, works)["failed"] == 1
        fields = runtime.store.fields([works[0].key])[0]
        assert fields["reason"].startswith("/data/upload/3/3.png is empty (0 bytes) (tried 2 times")

    def test_a_doubtful_image_has_its_own_time(self, runtime: Runtime, stub: StubLabelStudio) -> None:
        """Label Studio was gone for longer than an image is in doubt, and then nothing came once."""
        works = ask(runtime, stub.add_tasks(1))
        stub.images["/data/upload/3/1.png"] = b""
        key = works[0].key
        runtime.store.start([key], "job")
        assert runtime.store.try_later(key, "gone", 600.0) == "later"
        runtime.store.redis.hset(f"lasagna:work:{key}", "since", 1.0)
        assert predict(runtime, works)["later"] == 1
        assert states(runtime, works) == ["queued"]

    def test_unknown_label_studio(self, runtime: Runtime, stub: StubLabelStudio) -> None:
        runtime.store.redis.delete(f"lasagna:project:{PROJECT}")
        works = ask(runtime, stub.add_tasks(1))
        predict(runtime, works)
        assert "LASAGNA_LABEL_STUDIO_URL" in runtime.store.fields([works[0].key])[0]["reason"]

    @pytest.mark.slow
    def test_500_labels(self, runtime: Runtime, stub: StubLabelStudio) -> None:
        labels = "".join(f'<Label value="label {i}, &lt;SEG&gt;"/>' for i in range(500))
        config = f'<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i">{labels}</BrushLabels></View>'
        works = ask(runtime, stub.add_tasks(1), config)
        assert predict(runtime, works)["predicted"] == 1
        post = next(iter(runtime.store.take_posts()), None)
        assert post is not None
        names = {region["value"]["brushlabels"][0] for region in post.prediction["result"]}
        assert names <= {label.name for label in parse_label_config(config).classes}
        assert len(names) > 100


class TestConnections:
    def test_a_configured_token_goes_to_the_configured_address_only(
        self, model: Any, store: Store, stub: StubLabelStudio, redis_db: str
    ) -> None:
        environ = {"LASAGNA_REDIS_URL": redis_db, "LASAGNA_LABEL_STUDIO_TOKEN": "configured"}
        store.keep_project(PROJECT, Project("http://evil.example.org", "theirs"))
        found, _ = Runtime(model, Settings.load(environ), store).connections.of(PROJECT)
        assert (found.url, found.token) == ("http://evil.example.org", "theirs")
        environ["LASAGNA_LABEL_STUDIO_URL"] = stub.url
        found, _ = Runtime(model, Settings.load(environ), store).connections.of(PROJECT)
        assert (found.url, found.token) == (stub.url, "configured")

    def test_a_given_token_comes_before_that_of_setup(self, runtime: Runtime, settings: Settings) -> None:
        runtime.store.keep_project(PROJECT, Project("http://ls", "from-setup", "given"))
        assert runtime.connections.of(PROJECT)[0].token == "given"
        Predictor(settings, runtime.store).setup(PROJECT, CONFIG, "http://ls", "from-setup-2")
        assert runtime.connections.of(PROJECT)[0].token == "given"
        Predictor(settings, runtime.store).setup(PROJECT, CONFIG, "http://other", "from-setup-3")
        assert runtime.connections.of(PROJECT)[0].token == "from-setup-3"


BRUSH = '<BrushLabels name="{}" toName="{}"><Label value="Cat"/><Label value="Dog"/></BrushLabels>'
POINTS = '<KeyPointLabels name="{}" toName="{}" smart="true"><Label value="Cat"/></KeyPointLabels>'
TWO = '<Image name="left" value="$left"/><Image name="right" value="$right"/>'
OWN = f"<View>{TWO}{BRUSH.format('bl', 'left')}{POINTS.format('kl', 'left')}"
OWN += f"{BRUSH.format('br', 'right')}{POINTS.format('kr', 'right')}</View>"
SHARED = f"<View>{TWO}{BRUSH.format('b', 'left,right')}{POINTS.format('k', 'left,right')}</View>"
PAGES = f'<View><Image name="page" valueList="$pages"/>{BRUSH.format("b", "page")}</View>'


class TestSeveralImages:
    def task(self, stub: StubLabelStudio, *sizes: tuple[int, int], field: str = "") -> dict[str, Any]:
        """A task of two images, or of pages."""
        addresses = [f"/data/upload/3/{number}.png" for number in range(1, len(sizes) + 1)]
        for number, (address, size) in enumerate(zip(addresses, sizes, strict=True)):
            stub.images[address] = png(number, size=size)
        names = [field] if field else ["left", "right"]
        return {"id": 9, "data": dict(zip(names, [addresses] if field else addresses, strict=True))}

    def prediction(self, runtime: Runtime, work: Work) -> dict[str, Any]:
        post = next(iter(runtime.store.take_posts()), None)
        assert post is not None
        assert post.work.key == work.key
        return dict(post.prediction)

    @pytest.mark.parametrize(
        ("config", "controls"), [(OWN, ("bl", "br")), (SHARED, ("b", "b"))], ids=["own controls", "one control"]
    )
    def test_both_are_predicted_each_on_itself(
        self, runtime: Runtime, stub: StubLabelStudio, config: str, controls: tuple[str, str]
    ) -> None:
        [work] = ask(runtime, [self.task(stub, (64, 48), (40, 56))], config)
        assert predict(runtime, [work])["predicted"] == 1
        drawn = self.prediction(runtime, work)["result"]
        assert {(r["from_name"], r["to_name"], r["original_width"], r["original_height"]) for r in drawn} == {
            (controls[0], "left", 64, 48),
            (controls[1], "right", 40, 56),
        }
        assert len({region["id"] for region in drawn}) == len(drawn)

    def test_the_same_photo_twice_has_regions_of_its_own(self, runtime: Runtime, stub: StubLabelStudio) -> None:
        task = self.task(stub, (64, 48), (64, 48))
        task["data"]["right"] = task["data"]["left"]
        [work] = ask(runtime, [task], OWN)
        predict(runtime, [work])
        drawn = self.prediction(runtime, work)["result"]
        assert {region["to_name"] for region in drawn} == {"left", "right"}
        assert len({region["id"] for region in drawn}) == len(drawn)

    def test_one_that_is_broken_leaves_the_other(self, runtime: Runtime, stub: StubLabelStudio) -> None:
        task = self.task(stub, (64, 48), (64, 48))
        stub.images["/data/upload/3/2.png"] = b"this is text"
        [work] = ask(runtime, [task], OWN)
        assert predict(runtime, [work])["predicted"] == 1
        assert "right: " in runtime.store.fields([work.key])[0]["note"]
        assert {region["to_name"] for region in self.prediction(runtime, work)["result"]} == {"left"}

    def test_where_all_are_broken_each_is_named(self, runtime: Runtime, stub: StubLabelStudio) -> None:
        task = self.task(stub, (64, 48), (64, 48))
        stub.images["/data/upload/3/1.png"] = stub.images["/data/upload/3/2.png"] = b"this is text"
        [work] = ask(runtime, [task], OWN)
        assert predict(runtime, [work])["failed"] == 1
        reason = runtime.store.fields([work.key])[0]["reason"]
        assert "left: " in reason
        assert "; right: " in reason

    def test_one_that_cannot_be_had_now_waits_for_both(self, runtime: Runtime, stub: StubLabelStudio) -> None:
        task = self.task(stub, (64, 48), (64, 48))
        stub.status["/data/upload/3/2.png"] = 503
        [work] = ask(runtime, [task], OWN)
        assert predict(runtime, [work])["later"] == 1
        stub.status.clear()
        assert predict(runtime, [work])["predicted"] == 1
        assert {region["to_name"] for region in self.prediction(runtime, work)["result"]} == {"left", "right"}

    def test_more_pages_than_a_batch(self, runtime: Runtime, model: Any, stub: StubLabelStudio) -> None:
        [work] = ask(runtime, [self.task(stub, *[(32, 24)] * 11, field="pages")], PAGES)
        assert predict(runtime, [work])["predicted"] == 1
        assert {region["item_index"] for region in self.prediction(runtime, work)["result"]} == set(range(11))
        assert max(model.batches) == runtime._batch_size
        assert sum(model.batches) == 11


def click(**more: Any) -> dict[str, Any]:
    value = {"x": 40.0, "y": 30.0, "width": 0.3, "keypointlabels": ["Cat"], "labels": ["Cat"]}
    known = {"type": "keypointlabels", "from_name": "kp", "to_name": "image", "is_positive": True}
    return {**known, "value": value, **more}


def box(**more: Any) -> dict[str, Any]:
    value = {"x": 10.0, "y": 20.0, "width": 50.0, "height": 40.0, "rotation": 0, "rectanglelabels": ["Dog"]}
    return {"type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value, **more}


def only(*controls: Any) -> list[TaskImage]:
    """The image with these controls alone."""
    return [replace(IMAGE, config=replace(IMAGE.config, controls=controls))]


class TestPrompts:
    def test_click(self) -> None:
        brush = IMAGE.config.controls[0]
        assert brush.name == "brush"
        assert parse_prompt([click()], [IMAGE]) == Prompt(IMAGE, brush, "Cat", [(40.0, 30.0, True)], None)

    def test_clicks_and_box_together(self) -> None:
        regions = [click(id="1"), click(id="2", is_positive=False), box(id="3")]
        prompt = parse_prompt(regions, [IMAGE])
        assert (prompt.control.name, prompt.class_name, prompt.box) == ("brush", "Dog", (10.0, 20.0, 60.0, 60.0))
        assert [positive for _, _, positive in prompt.points] == [True, False]

    @pytest.mark.parametrize(
        ("kinds", "chosen"),
        [
            (["brush", "polygon", "rectangle"], "brush"),
            (["polygon", "rectangle"], "polygon"),
            (["rectangle"], "rectangle"),
        ],
    )
    def test_the_answer_is_drawn_in_the_control_that_fits(self, kinds: list[str], chosen: str) -> None:
        controls = [c for c in IMAGE.config.controls if c.kind in [*kinds, "keypoint"] and c.name != "box"]
        assert parse_prompt([click()], only(*controls)).control.kind == chosen

    def test_a_rectangle_is_drawn_in_the_control_that_is_not_the_prompt(self) -> None:
        controls = [c for c in IMAGE.config.controls if c.kind == "rectangle"]
        assert parse_prompt([box()], only(*controls[::-1])).control.name == "rect"

    @pytest.mark.parametrize(
        ("regions", "words"),
        [
            ([], "holds no click"),
            (["x", None, 5, {}, {"value": 5}], "holds no click"),
            ([click(to_name="other")], "it holds a click on 'other'"),
            ([click(value={"keypointlabels": ["Cat"]})], "holds no click"),
            ([click(value={"x": "a", "y": 1, "keypointlabels": ["Cat"]})], "holds no click"),
            (
                [click(value={"x": 1, "y": 1, "keypointlabels": ["Fish"]})],
                "the label 'Fish', which the con",
            ),
            ([click(value={"x": 1, "y": 1})], "a click without a label; choose one first"),
            ([click(value={"x": 1, "y": 1, "keypointlabels": ["Bird"]})], "no control .* draws the label 'Bird'"),
        ],
    )
    def test_says_what_is_wrong(self, regions: list[Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            parse_prompt(regions, [IMAGE])

    @pytest.mark.parametrize(
        ("config", "clicked", "drawn"),
        [
            (SHARED, ("k", "left"), ("left", "b")),
            (SHARED, ("k", "right"), ("right", "b")),
            (OWN, ("kl", "left"), ("left", "bl")),
            (OWN, ("kr", "right"), ("right", "br")),
        ],
        ids=["shared, first", "shared, second", "own, first", "own, second"],
    )
    def test_the_answer_is_drawn_on_the_image_that_was_clicked(
        self, config: str, clicked: tuple[str, str], drawn: tuple[str, str]
    ) -> None:
        images = label_config(config).of_task({"left": "/a.png", "right": "/b.png"})
        prompt = parse_prompt([click(from_name=clicked[0], to_name=clicked[1])], images)
        assert (prompt.image.config.image_name, prompt.control.name) == drawn
        assert prompt.image.address == ("/a.png" if drawn[0] == "left" else "/b.png")

    def test_a_click_on_a_page(self) -> None:
        images = label_config(PAGES).of_task({"pages": ["/a.png", "/b.png"]})
        prompt = parse_prompt([click(from_name="k", to_name="page", item_index=1)], images)
        assert (prompt.image.config.item_index, prompt.image.address) == (1, "/b.png")

    def test_prompt_controls_are_not_drawn_in_twice(self) -> None:
        assert [c.name for c in IMAGE.config.drawn] == ["brush", "poly", "rect"]
        [without] = only(*(c for c in IMAGE.config.controls if c.name != "rect"))
        assert "box" in [c.name for c in without.config.drawn]


class TestClicks:
    def request(self, runtime: Runtime, regions: list[Any], image: str = "/data/upload/3/1.png") -> dict[str, Any]:
        config = runtime.store.keep_config(CONFIG)
        data = json.dumps({"image": image})
        asked = {"project": PROJECT, "version": runtime.model.version, "task": 1, "data": data}
        return {**asked, "config": config, "context": regions}

    @pytest.mark.parametrize("region", [click(), box()], ids=["point", "box"])
    def test_answers_a_region_of_the_chosen_label(
        self, runtime: Runtime, stub: StubLabelStudio, region: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import numpy as np

        stub.add_tasks(1)
        whole = CountingLasagna.segment_prompt
        asked = []

        def segment_prompt(self: Any, features: Any, **prompt: Any) -> Any:
            mask, score = whole(self, features, **prompt)
            asked.append((mask.shape, prompt))
            painted = np.zeros_like(mask)  # random weights may find nothing
            painted[10:20, 10:30] = True
            return painted, score

        monkeypatch.setattr(CountingLasagna, "segment_prompt", segment_prompt)
        prediction = runtime.click(self.request(runtime, [region]))["prediction"]
        [drawn] = prediction["result"]
        assert (drawn["from_name"], drawn["type"]) == ("brush", "brushlabels")
        assert (drawn["original_width"], drawn["original_height"]) == (64, 48)
        assert drawn["value"]["brushlabels"] == region["value"].get("keypointlabels", ["Dog"])
        [(shape, prompt)] = asked
        assert shape == (48, 64)
        if region["type"] == "keypointlabels":
            assert prompt["points"] == [pytest.approx((25.6, 14.4, True))]
        else:
            assert prompt["box"] == pytest.approx((6.4, 9.6, 38.4, 28.8))

    def test_the_image_is_encoded_and_fetched_once(self, runtime: Runtime, model: Any, stub: StubLabelStudio) -> None:
        stub.add_tasks(1)
        for _ in range(3):
            assert "prediction" in runtime.click(self.request(runtime, [click()]))
        assert model.encoded == 1
        assert len(stub.requests) == 1

    @pytest.mark.slow
    def test_features_of_the_last_images_are_kept(self, runtime: Runtime, model: Any, stub: StubLabelStudio) -> None:
        stub.add_tasks(12)
        for number in range(1, 13):
            runtime.click(self.request(runtime, [click()], f"/data/upload/3/{number}.png"))
        assert model.encoded == 12
        runtime.click(self.request(runtime, [click()], "/data/upload/3/12.png"))
        assert model.encoded == 12
        runtime.click(self.request(runtime, [click()], "/data/upload/3/1.png"))
        assert model.encoded == 13

    def test_failures_are_words(self, runtime: Runtime, stub: StubLabelStudio) -> None:
        assert "answered 404" in runtime.click(self.request(runtime, [click()]))["error"]
        stub.images["/data/upload/3/1.png"] = b"text"
        assert "not an image" in runtime.click(self.request(runtime, [click()]))["error"]
        assert "holds no click" in runtime.click(self.request(runtime, []))["error"]

    def test_a_model_that_fails_is_an_answer_too(
        self, runtime: Runtime, stub: StubLabelStudio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any, **__: Any) -> None:
            raise MemoryError("no memory left")

        stub.add_tasks(1)
        monkeypatch.setattr(CountingLasagna, "segment_prompt", fails)
        answer = runtime.click(self.request(runtime, [click()]))
        assert answer == {"error": "the model failed: MemoryError: no memory left"}


def test_a_predicted_photo_is_not_encoded_again_when_it_is_corrected(
    runtime: Runtime, model: Any, stub: StubLabelStudio
) -> None:
    """An opened task comes alone: its features serve the clicks, the correction, and the prediction of a newer head."""
    works = ask(runtime, stub.add_tasks(1))
    predict(runtime, works)
    assert model.encoded == 1
    data = stub.images["/data/upload/3/1.png"]
    runtime._encoded(runtime.model, data, "1.png")
    assert model.encoded == 1


def test_what_is_predicted_pushes_out_nothing_that_was_asked_for() -> None:
    kept = KeptFeatures(2)
    for number in range(3):
        kept.keep(("v", f"clicked {number}"), number)
    for number in range(9):
        kept.keep(("v", f"predicted {number}"), number, predicted=True)
    assert kept.asked == {"clicked 1", "clicked 2"}
    assert len(kept) == 4
    assert ("v", "predicted 6") not in kept
    kept.keep(("v", "predicted 8"), kept.get(("v", "predicted 8")))  # it is clicked on
    assert kept.asked == {"clicked 2", "predicted 8"}
    assert len(kept) == 3
    assert ("other version", "predicted 8") not in kept
