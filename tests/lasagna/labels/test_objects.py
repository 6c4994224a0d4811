"""Which labels have a region for each object: what a label says, else the kind of its name, else what draws it."""

import pytest

from lasagna.errors import ConfigError
from lasagna.labels.classes import make_label_config
from lasagna.labels.configuration import parse_label_config
from lasagna.labels.kinds import STUFF, THINGS, kind_of
from lasagna.labels.question import ProjectQuestion
from lasagna.masks.segmentation import ClassQuery


def config(control: str, *labels: str) -> str:
    inside = "".join(f"<Label {label}/>" for label in labels)
    return f'<View><Image name="i" value="$i"/><{control} name="c" toName="i">{inside}</{control}></View>'


def told(xml: str) -> dict[str, bool | None]:
    return {query.name: query.objects for query in parse_label_config(xml).classes}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("car", "thing"),
        ("Cars", "thing"),
        ("traffic_lights", "thing"),
        ("people", "thing"),
        ("TV", "thing"),
        ("buses", "thing"),
        ("grass", "stuff"),
        ("sky", "stuff"),
        ("Wooden-Floor", "stuff"),
        ("glass", None),
        ("weld seam", None),
        ("", None),
    ],
)
def test_kinds_of_names(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_no_name_is_both() -> None:
    assert not THINGS & STUFF
    assert all(kind_of(name) == "thing" for name in THINGS)
    assert all(kind_of(name) == "stuff" for name in STUFF)


def test_default_by_kind_of_name_and_by_what_draws_it() -> None:
    names = ('value="person"', 'value="sky"', 'value="weld seam"', 'value="Auto" hint="car"')
    assert told(config("BrushLabels", *names)) == {"person": True, "sky": None, "weld seam": None, "Auto": True}
    assert told(config("RectangleLabels", *names)) == {"person": True, "sky": None, "weld seam": True, "Auto": True}
    both = config("RectangleLabels", 'value="weld seam"').replace(
        "</View>", '<BrushLabels name="b" toName="i"><Label value="weld seam"/></BrushLabels></View>'
    )
    assert told(both) == {"weld seam": None}, "a brush draws it as well: its regions are no objects by themselves"


def test_a_label_says_it_itself() -> None:
    labels = ('value="person" objects="false"', 'value="sky" Objects="TRUE"', 'value="x" objects="true"')
    assert told(config("BrushLabels", *labels)) == {"person": False, "sky": True, "x": True}
    taxonomy = (
        '<View><Image name="i" value="$i"/><Brush name="b" toName="i"/><Taxonomy name="t" toName="i" perRegion="true">'
        '<Choice value="animal"><Choice value="cat"/><Choice value="dog" objects="false"/></Choice></Taxonomy></View>'
    )
    assert told(taxonomy) == {"animal / cat": True, "animal / dog": False}
    with pytest.raises(ConfigError, match='objects="each">: objects="true" makes each object a region'):
        parse_label_config(config("BrushLabels", 'value="person" objects="each"'))


def test_made_configuration_says_it_where_a_query_does() -> None:
    queries = [ClassQuery("person"), ClassQuery("car", objects=False), ClassQuery("sky", objects=True)]
    assert told(make_label_config(queries)) == {"person": True, "car": False, "sky": True}
    assert "objects" not in make_label_config([ClassQuery("person"), ClassQuery("sky")])


def test_another_question() -> None:
    """A prediction that does not tell objects apart answers no question that does; stuff is asked as before."""

    def question(*labels: str) -> ProjectQuestion:
        return ProjectQuestion.of(parse_label_config(config("BrushLabels", *labels)).images, {}, {})

    apart, together = question('value="person"'), question('value="person" objects="false"')
    assert apart.digest != together.digest
    [found] = apart.since(together)
    assert (found.kind, found.words) == ("controls", "the label 'person' is one region for each object now")
    [found] = together.since(apart)
    assert found.words == "the label 'person' is no more a region for each object"
    assert question('value="sky"').digest == question('value="sky" objects="false"').digest
    assert ProjectQuestion.from_text(apart.text).since(apart) == []
