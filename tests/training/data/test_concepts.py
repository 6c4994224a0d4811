"""The table of concepts: it knows every shipped name, and never calls a name absent that may be in the photo."""

import json
from pathlib import Path

import pytest

from training.data.concepts import (
    BROADER,
    CONCEPTS,
    CONFUSABLE,
    DOMAINS,
    GROUPS,
    concept_of,
    has_near_synonyms,
    implied_absent,
    is_doubtful_negative,
    possible_negatives,
    reason_not_negative,
    same_concept,
)

CAMVID = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
MSRC = ("building", "grass", "sky", "mountain", "aeroplane", "water", "face", "car", "sign", "body", "boat", "tree")
FACADE = ("balcony fence", "car", "facade", "fence", "shop", "street", "vegetation", "window")
CCP = ("bag", "purse", "hair", "shoes", "shirt", "tie", "skin")
CWFID = ("crop", "weed")
IDD = ("road", "roadside ground", "person or animal", "vehicle", "roadside object", "building or vegetation", "sky")
COCO = ("person", "car", "bench", "zebra", "traffic light")


def test_every_concept_is_in_one_group() -> None:
    concepts = [concept for group in GROUPS for concept in group.concepts]
    assert len(concepts) == len(set(concepts))
    assert all(concept and concept == concept.casefold().strip() for concept in concepts)
    domains = {domain for group in GROUPS for domain in group.may_turn_up}
    assert domains == set(DOMAINS.values())


def test_synonyms_and_broader_concepts_lead_to_concepts() -> None:
    concepts = {concept for group in GROUPS for concept in group.concepts}
    assert set(CONCEPTS.values()) == concepts
    assert set(BROADER) <= concepts
    assert {broader for parents in BROADER.values() for broader in parents} <= concepts
    assert set().union(*CONFUSABLE) <= concepts


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("pavement", "sidewalk"),
        ("pedestrian", "person"),
        ("Pedestrians", "people"),
        ("aeroplane", "airplane"),
        ("Aeroplanes", "airplane"),
        ("street", "road"),
        ("handbag", "purse"),
        ("traffic_light", "traffic lights"),
        ("shoe", "shoes"),
        ("T-Shirt", "t-shirts"),
        ("sign symbol", "traffic sign"),
        ("griffin", "Griffins"),
    ],
)
def test_same_concept(a: str, b: str) -> None:
    assert same_concept(a, b)
    assert same_concept(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [("glasses", "wine glass"), ("bear", "teddy bear"), ("bus", "car"), ("griffin", "car"), ("boots", "boat")],
)
def test_different_concepts(a: str, b: str) -> None:
    assert not same_concept(a, b)


@pytest.mark.parametrize(
    ("own_set", "own", "safe", "unsafe"),
    [
        ("camvid", CAMVID, ["zebra", "toilet", "sea", "pizza"], ["window", "person", "bench", "jeans", "road", "face"]),
        ("msrc", MSRC, ["zebra", "toilet", "skis"], ["airplane", "person", "window", "shirt", "tie", "sea", "couch"]),
        ("facade", FACADE, ["zebra", "elephant", "sea", "oven"], ["building", "tree", "sky", "person", "curtain"]),
        ("ccp", CCP, ["zebra", "oven", "m20 nut"], ["person", "car", "window", "handbag", "road", "cup"]),
        ("atwork", ("motor", "m20 nut"), ["zebra", "sky", "grass", "car"], ["jeans", "person", "wall", "shoes"]),
        ("cwfid", CWFID, ["zebra", "tree", "car", "person"], ["carrot", "grass", "vegetation", "dirt"]),
        (
            "idd",
            IDD,
            ["sea", "pizza", "resistor"],
            ["cow", "truck", "fence", "tree", "pedestrian", "pothole", "window"],
        ),
        ("circuit", ("led", "resistor"), ["zebra", "road", "m20 nut"], ["table", "wooden floor", "book", "person"]),
        ("potholes", ("pothole",), ["zebra", "resistor", "oven"], ["road", "shoes", "grass", "sand", "water"]),
        ("mushrooms", ("mushroom",), ["zebra", "road", "shoes"], ["dirt", "food", "grass", "cardboard", "person"]),
        ("animals", ("tiger", "deer"), ["m20 nut"], ["person", "zebra", "resistor", "pizza", "grass"]),
        ("coco_panoptic", COCO, ["m20 nut", "em_01"], ["window", "shirt", "tie", "pedestrian", "face", "motor"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_possible_negatives(own_set: str, own: tuple[str, ...], safe: list[str], unsafe: list[str]) -> None:
    assert possible_negatives(own_set, own, [*unsafe, *safe, *safe]) == safe


def test_nothing_is_certain_about_what_the_table_does_not_know() -> None:
    assert possible_negatives("camvid", CAMVID, ["griffin"]) == []
    assert possible_negatives("my_photos", ["cat"], ["zebra"]) == []
    assert "no known domain" in str(reason_not_negative("my_photos", ["cat"], "zebra"))
    assert reason_not_negative("my_photos", ["cat"], "zebra", unknown_is_reason=False) is None
    assert reason_not_negative("camvid", CAMVID, "griffin", unknown_is_reason=False) is None
    assert "may be in" in str(reason_not_negative("camvid", CAMVID, "window", unknown_is_reason=False))
    assert "same as" in str(reason_not_negative("my_photos", ["cat"], "Cats"))


def test_a_class_of_one_set_is_a_doubtful_negative_beside_its_near_synonyms() -> None:
    assert is_doubtful_negative("purse", ["bag", "skin"])
    assert is_doubtful_negative("jeans", ["pants"])
    assert is_doubtful_negative("blazer", ["jacket"])
    assert not is_doubtful_negative("hat", ["bag", "shoes", "skin", "hair"])
    assert not is_doubtful_negative("griffin", ["dragon"])


def test_which_annotators_took_near_synonyms_for_one_another() -> None:
    assert has_near_synonyms("ccp")
    assert not has_near_synonyms("camvid")
    assert not has_near_synonyms("my_photos")


def test_an_absent_class_implies_that_its_kinds_are_absent() -> None:
    assert implied_absent({"water", "aeroplane"}, ["river", "airplane", "car", "griffin"]) == ["river", "airplane"]
    assert implied_absent({"river"}, ["water"]) == []
    assert implied_absent({"griffin"}, ["dragon"]) == []


def test_every_name_of_the_data_folder_is_known(shared_data: Path) -> None:
    unknown = []
    for path in sorted(shared_data.glob("*/classes.json")):
        meta = json.loads(path.read_text())
        assert path.parent.name in DOMAINS
        names = [name for i, name in enumerate(meta["classes"]) if i != meta["background_index"]]
        unknown += [name for name in names if concept_of(name) is None]
    assert unknown == []
