"""The parts of `lasagna bench faults` that could hide a fault: the gateway, and what counts as twice."""

from collections.abc import Iterator

import pytest
import requests

from lab.faults.bad_gateway import BadGateway
from lab.faults.catalogue import FAULTS
from lab.faults.command import _report, table
from lab.faults.rig import Round, _is_twice
from tests.backend.backend_helpers import TOKEN, StubLabelStudio, wait_until

HEADERS = {"Authorization": f"Token {TOKEN}"}


@pytest.fixture
def gateway() -> Iterator[BadGateway]:
    found = BadGateway()
    yield found
    found.stop()


@pytest.mark.parametrize(
    ("mode", "status", "stored"), [("", 201, 1), ("500", 500, 0), ("502", 502, 1), ("half", None, 1)]
)
def test_gateway(gateway: BadGateway, stub: StubLabelStudio, mode: str, status: int | None, stored: int) -> None:
    url = gateway.to(stub.url)
    gateway.misbehave(mode, share=1.0, seed=0)

    def store() -> int:
        body = {"task": 1, "model_version": "tiny-1", "result": []}
        return requests.post(f"{url}/api/predictions/", json=body, headers=HEADERS, timeout=10).status_code

    if status is None:
        with pytest.raises(requests.RequestException):
            store()
    else:
        assert store() == status
    assert len(stub.predictions) == stored
    gateway.misbehave("", share=0.0, seed=0)
    assert requests.get(f"{url}/api/predictions/", {"task": 1}, headers=HEADERS, timeout=10).json() == stub.predictions


def test_gateway_that_gives_up_too_early(gateway: BadGateway, stub: StubLabelStudio) -> None:
    gateway.to(stub.url)
    gateway.misbehave("late", share=1.0, seed=0)
    body = {"task": 1, "model_version": "tiny-1", "result": []}
    url = f"{gateway.to(stub.url)}/api/predictions/"
    assert requests.post(url, json=body, headers=HEADERS, timeout=10).status_code == 504
    assert requests.get(url, {"task": 1}, headers=HEADERS, timeout=10).json() == []
    wait_until(lambda: len(stub.predictions) == 1, 10, "the prediction")


def test_gateway_without_label_studio(gateway: BadGateway, stub: StubLabelStudio) -> None:
    url = gateway.to(stub.url)
    stub.stop()
    assert requests.get(url, timeout=10).status_code == 502


@pytest.mark.parametrize(
    ("versions", "twice"), [([], False), (["a"], False), (["a", "b"], False), (["a", "b", "a"], True)], ids=str
)
def test_twice(versions: list[str], twice: bool) -> None:
    assert _is_twice([{"model_version": version} for version in versions]) == twice


def test_report_adds_up() -> None:
    done = [
        Round(1, "worker", 12, 20.0, predicted=12),
        Round(2, "poison", 12, 200.0, predicted=11, failed=1, reasons=["task 5: the worker died 4 times"]),
        Round(3, "web", 12, 20.0, predicted=10, lost=[7, 8], twice=[9]),
        Round(4, "two", 12, 20.0, struck=False, predicted=12),
    ]
    report = _report(done, {"disk": "only root can"}, seed=1)
    assert report["faults_injected"] == 3
    assert (report["tasks"], report["tasks_predicted"], report["tasks_failed_with_a_reason"]) == (48, 45, 1)
    assert (report["tasks_lost"], report["predictions_twice"]) == (2, 1)
    last = table(report).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == ["all", "3", "48", "1", "2", "1", ""]
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
