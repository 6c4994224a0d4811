"""What `lasagna bench submit` counts. It was run as a whole for docs/lab/benchmarks.md; that takes minutes."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

from lab.service import submit
from lab.service.load import Load
from lab.service.submit import Submitted, correct, row_of
from lasagna.labels.classes import make_label_config
from lasagna.masks.segmentation import ClassQuery


class Product:
    """A product whose head is new at the second look after a correction, and a Label Studio that asks it."""

    def __init__(self, stale: int = -1) -> None:
        self.stale, self.head, self.coming, self.annotated = stale, 0, 0, list[int]()

    def create_annotation(self, task: int, result: list[dict[str, Any]], lead_time: float) -> None:
        assert {region["value"]["brushlabels"][0] for region in result} == {"cat", "dog", "sky"}
        self.annotated.append(task)
        self.coming = 2

    def serving(self, project: int) -> str:
        if self.coming:
            self.coming -= 1
            self.head += self.coming == 0
        return f"nano+h{self.head}"

    def open_task(self, project: int, task: int) -> dict[str, Any]:
        return {"predictions": [{"model_version": "nano" if task == self.stale else f"nano+h{self.head}"}]}

    def check(self) -> None:
        pass


def bench_of(product: Product) -> Load:
    classes = ["cat", "dog", "sky"]
    parts = SimpleNamespace(api=product, serving=product.serving, check=product.check)
    config = make_label_config([ClassQuery(name) for name in classes])
    console = SimpleNamespace(status=lambda _: nullcontext())
    return cast(Load, SimpleNamespace(parts=parts, shown=3, classes=classes, config=config, console=console))


def test_each_correction_is_timed_to_the_next_opened_task() -> None:
    product = Product()
    found = correct(bench_of(product), [{"id": number} for number in (5, 6, 7)])
    assert product.annotated == [5, 6]
    assert [one.failed for one in found] == ["", ""]
    assert all(0 < one.learnt <= one.shown < 30 for one in found if one.learnt and one.shown)


def test_an_opened_task_with_an_older_prediction_fails() -> None:
    found = correct(bench_of(Product(stale=6)), [{"id": number} for number in (5, 6)])
    assert found[0].failed == "the opened task has ['nano']"


def test_a_head_that_never_comes_fails(monkeypatch: Any) -> None:
    monkeypatch.setattr(submit, "_LEARNT_WITHIN", 0.2)
    product = Product()
    monkeypatch.setattr(product, "serving", lambda _: "nano+h1")
    found = correct(bench_of(product), [{"id": 1}, {"id": 2}])
    assert "no newer head within 0.2 s" in found[0].failed
    row = row_of("alone", [*found, Submitted(1.0, 2.0), Submitted(3.0, 6.0)])
    assert (row["count"], row["failed"]) == (3, 1)
    assert (row["learnt_median_s"], row["shown_median_s"], row["shown_worst_s"]) == (2.0, 4.0, 6.0)
    assert row_of("alone", found)["shown_median_s"] is None
