"""Class lists from text, files and labelling configurations: a label comes back as itself."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lasagna.errors import ConfigError, QueryError
from lasagna.labels import elements
from lasagna.labels.classes import describe_classes, make_label_config, read_labels, read_labels_file
from lasagna.labels.configuration import parse_label_config, read_label_config
from lasagna.labels.parts import with_thresholds
from lasagna.masks.segmentation import ClassQuery

ODD = [
    "bag, purse",
    '19" rack',
    "<SEG>",
    "a<NEG>, b<SEG>",
    "Straßenbahn",
    "街灯",
    "🐈‍⬛",
    "cat",
    "Cat",
    "CAT",
    "a = b",
    "# not a comment",
    "'quoted'",
    "{c1}",
    "...",
    "x" * 300,
    "two\nlines",
    "tab\there",
    "&amp; <b>",
]


def names(queries: list[ClassQuery]) -> list[str]:
    return [query.name for query in queries]


# --- Lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sky", ["sky"]),
        ("sky,road,cat", ["sky", "road", "cat"]),
        (" sky , traffic light ,", ["sky", "traffic light"]),
        ('sky,"bag, purse", "19"" rack"', ["sky", "bag, purse", '19" rack']),
        ("cat,Cat,cat", ["cat", "Cat"]),
        ("sky\nroad", ["sky", "road"]),
        ("<SEG>,it's", ["<SEG>", "it's"]),
    ],
)
def test_read_labels(text: str, expected: list[str]) -> None:
    assert names(read_labels(text)) == expected


@pytest.mark.parametrize("text", ["", " ", ",,", '""'])
def test_no_labels(text: str) -> None:
    with pytest.raises(QueryError, match="give at least one label"):
        read_labels(text)


def test_an_open_quote_is_an_error_in_words() -> None:
    with pytest.raises(QueryError, match="double quotes"):
        read_labels('sky,"road')


@settings(deadline=None)
@given(st.lists(st.text(min_size=1).map(str.strip).filter(bool), min_size=1, max_size=20, unique=True))
def test_any_label_comes_back_from_csv(labels: list[str]) -> None:
    text = ",".join('"' + label.replace('"', '""') + '"' for label in labels)
    assert names(read_labels(text)) == labels


def test_labels_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(
        "\ufeff# classes of the street project\n\nsky\n  road  \nAuto = car\nbag, purse\na=b\nsky\nx =\n",
        encoding="utf-8",
    )
    assert read_labels_file(path) == [
        ClassQuery("sky"),
        ClassQuery("road"),
        ClassQuery("Auto", "car"),
        ClassQuery("bag, purse"),
        ClassQuery("a=b"),
        ClassQuery("x ="),
    ]


def test_labels_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "latin1.txt").write_bytes("Straße".encode("latin-1"))
    with pytest.raises(QueryError, match="at least one label"):
        read_labels_file(tmp_path / "empty.txt")
    with pytest.raises(ConfigError, match=r"latin1.txt is not UTF-8"):
        read_labels_file(tmp_path / "latin1.txt")
    with pytest.raises(ConfigError, match="No such file"):
        read_labels_file(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("sky;tree", "sky,tree"),
        ("sky; tree,road", "sky,tree,road"),
        ("sky. tree.", "sky,tree"),
        ("cat . dog .", "cat,dog"),
        ("sky|tree", "sky,tree"),
        ("sky\ttree", "sky,tree"),
        ("天空，树", "天空,树"),
        ("天空、树", "天空,树"),
        ('["sky", "tree"]', "sky,tree"),
        ("['sky','tree']", "sky,tree"),
    ],
)
def test_other_separators_are_refused_with_the_right_spelling(text: str, meant: str) -> None:
    with pytest.raises(QueryError) as refused:
        read_labels(text)
    assert f"write {meant!r}" in str(refused.value)
    quoted = '"' + text.replace('"', '""') + '"'
    assert names(read_labels(quoted)) == [text], "in double quotes it is a label"


@pytest.mark.parametrize("text", ["St. Bernard,cat", "grass/lawn", "...", "No. 7,cat", "a.b", "sky,tree.", "@home,cat"])
def test_labels_that_look_a_little_like_it(text: str) -> None:
    assert ",".join(names(read_labels(text))) == text


def test_a_file_where_labels_are_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("sky\nAuto = car\n")
    (tmp_path / "classes").write_text("sky\ntree\n")
    expected = [ClassQuery("sky"), ClassQuery("Auto", "car")]
    for text in ("@names.txt", "names.txt", f" @{tmp_path}/names.txt ", str(tmp_path / "names.txt")):
        assert read_labels(text) == expected
    assert names(read_labels("@classes")) == ["sky", "tree"]
    assert names(read_labels("classes")) == ["classes"], "without @ and ending it is a label"
    assert names(read_labels('"names.txt"')) == ["names.txt"]
    for text in ("@gone.txt", "gone.names", "@home"):
        with pytest.raises(QueryError, match="there is none of this name"):
            read_labels(text)
    (tmp_path / "project.xml").write_text("<View/>")
    with pytest.raises(QueryError, match="--label-config"):
        read_labels("project.xml")


@pytest.mark.parametrize("content", ["sky,tree,grass\n", "# classes\nsky;tree\n", "sky\ttree"])
def test_a_file_with_all_labels_on_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(content)
    with pytest.raises(QueryError, match="one per line"):
        read_labels_file(tmp_path / "names.txt")


def test_encodings_and_line_ends(tmp_path: Path) -> None:
    odd = [
        "sky ",
        "no",
        "1",
        "0.5",
        "null",
        "~",
        "#hash",
        "tree: green",
        "a,b",
        '"quoted"',
        "🐄",
        "شجرة",
        "- item",
        "{x}",
    ]
    expected = [label.strip() for label in odd if not label.startswith("#")]
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "names.txt").write_bytes(end.join(odd).encode("utf-8-sig"))
        assert names(read_labels_file(tmp_path / "names.txt")) == expected
    for encoding in ("utf-16", "gbk"):
        (tmp_path / "names.txt").write_bytes("天空\n".encode(encoding))
        with pytest.raises(ConfigError, match=r"is not UTF-8 text .* at byte \d+\); save it as UTF-8"):
            read_labels_file(tmp_path / "names.txt")


def test_the_class_list_in_words() -> None:
    assert describe_classes([ClassQuery("sky"), ClassQuery("Auto", "car")]) == "2 classes: sky, Auto (read as car)"
    assert describe_classes([ClassQuery("sky")]) == "1 class: sky"
    assert describe_classes([ClassQuery(f"c{i}") for i in range(500)]).endswith("c19, and 480 more")


# --- Labelling configurations -----------------------------------------------------------------------------------------

ALL_AT_ONCE = """
<View>
  <Header value="Street"/>
  <Image name="img" value="$photo" zoom="true"/>
  <BrushLabels name="brush" toName="img" smart="false">
    <Label value="Sky" background="#00f"/>
    <Label value="Auto" alias="car"/>
  </BrushLabels>
  <View style="display: none">
    <PolygonLabels name="poly" toName="img">
      <View><Label value="Auto"/></View>
      <Label value="Baum" hint="tree" predicted_values="plant, bush"/>
    </PolygonLabels>
  </View>
  <RectangleLabels name="box" toName="img" smart="true">
    <Label value="Sky" predicted_values="sky,heaven"/>
  </RectangleLabels>
  <KeyPointLabels name="click" toName="img" smart="true"><Label value="Only here"/></KeyPointLabels>
  <Choices name="absent" toName="img" choice="multiple">
    <Choice value="Sky"/><Choice value="Auto" alias="car"/>
  </Choices>
  <TextArea name="note" toName="img"/>
</View>
"""


def test_all_controls_at_once() -> None:
    [config] = parse_label_config(ALL_AT_ONCE).images
    assert (config.image_name, config.value) == ("img", "$photo")
    assert [(c.name, c.kind, c.to_name, c.smart) for c in config.controls] == [
        ("brush", "brush", "img", False),
        ("poly", "polygon", "img", False),
        ("box", "rectangle", "img", True),
        ("click", "keypoint", "img", True),
    ]
    assert config.classes == (
        ClassQuery("Sky", "sky"),
        ClassQuery("Auto", "car", objects=True),
        ClassQuery("Baum", "tree"),
    )
    assert config.controls[1].labels[1].predicted_values == ("plant", "bush")
    assert (config.absent_choices, config.absent_values) == ("absent", (("Sky", "Sky"), ("Auto", "car")))
    assert [control.name for control, _ in config.controls_for("Sky")] == ["brush", "box"]
    assert config.controls_for("Only here") == []


def test_thresholds_of_labels() -> None:
    xml = ALL_AT_ONCE.replace('alias="car"/>', 'alias="car" threshold="0.25"/>', 1)
    config = parse_label_config(xml)  # "Auto" stands in a second control without one
    assert [query.threshold for query in config.classes] == [None, 0.25, None]
    given = with_thresholds(config.images[0], {"Sky": 0.5, "Auto": 0.75, "gone": 0.1})
    assert [query.threshold for query in given.classes] == [0.5, 0.75, None]
    names = [[label.value for label in control.labels] for control in config.images[0].controls]
    assert [[label.value for label in control.labels] for control in given.controls] == names
    assert parse_label_config(ALL_AT_ONCE.replace('hint="tree"', 'threshold=" "')).classes[2].threshold is None


@pytest.mark.parametrize("written", ["0", "1", "1.5", "-0.1", "nan", "30 %", "0,3", "inf"])
def test_a_threshold_that_is_no_probability_is_named(written: str) -> None:
    xml = ALL_AT_ONCE.replace('alias="car"/>', f'alias="car" threshold="{written}"/>', 1)
    with pytest.raises(ConfigError, match=r'<Label value="Auto" threshold=.*between 0 and 1, such as 0\.3'):
        parse_label_config(xml)


def test_a_label_with_an_alias_is_written_as_the_alias() -> None:
    """As Label Studio's own validation of predictions demands."""
    brush = parse_label_config(ALL_AT_ONCE).images[0].controls[0]
    label = brush.label("Auto")
    assert label is not None
    assert label.written == "car"
    assert brush.label_written("car") == brush.label_written("Auto") == label
    assert brush.label_written("nothing") is None


def test_tags_and_attributes_in_any_case_and_several_targets() -> None:
    config = parse_label_config(
        '<view><image NAME="i" value="$x"/>'
        '<brushlabels name="b" toname="t, i"><label VALUE=" cat "/></brushlabels></view>'
    )
    assert config.classes == (ClassQuery("cat", objects=True),)


def test_the_image_that_is_drawn_on_counts() -> None:
    config = parse_label_config(
        '<View><Image name="before" value="$a"/><Image name="after" value="$b"/>'
        '<BrushLabels name="x" toName="after"><Label value="cat"/></BrushLabels>'
        '<BrushLabels name="y" toName="nothing"><Label value="dog"/></BrushLabels></View>'
    )
    [image] = config.images
    assert (image.image_name, image.value, config.classes) == ("after", "$b", (ClassQuery("cat", objects=True),))
    assert [part.tag for part in config.not_served] == ['<Image name="before">', '<BrushLabels name="y">']


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ("", "not the XML"),
        ("<View>", "not the XML"),
        ('<!DOCTYPE v [<!ENTITY a "b">]><View>&a;</View>', "not the XML"),
        ("<View/>", r"shows no image \(no tag has a name\)"),
        ('<View><Text name="t" value="$t"/></View>', r'shows no image \(found <Text name="t">\)'),
        (
            '<View><Image name="i" value="$i"/></View>',
            r'\(found <Image name="i">\): .*no control with labels draws on it',
        ),
        ('<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"/></View>', 'has no <Label value="..."/>'),
        (
            '<View><Image name="i" value="$i"/>'
            '<KeyPointLabels name="k" toName="i"><Label value="c"/></KeyPointLabels></View>',
            'found <Image name="i">, <KeyPointLabels name="k">.*key points only take clicks',
        ),
        (
            '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"><Label value="c"/></BrushLabels>'
            '<Choices name="absent" toName="i"><Choice value="c"/></Choices></View>',
            'add choice="multiple"',
        ),
    ],
)
def test_unusable_configurations_are_refused_in_words(xml: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_label_config(xml)
    path = tmp_path / "config.xml"
    path.write_text(xml)
    with pytest.raises(ConfigError, match=r"config\.xml"):
        read_label_config(path)


def test_made_configuration_holds_the_same_classes() -> None:
    queries = [ClassQuery(name) for name in ODD] + [ClassQuery("Auto", "car, seen from behind")]
    config = parse_label_config(make_label_config(queries))
    things = {"cat", "Cat", "CAT"}  # by their names, since nothing else is said
    assert config.classes == tuple(replace(q, objects=True if q.name in things else None) for q in queries)
    [image] = config.images
    assert image.absent_values == tuple((query.name, query.name) for query in queries)
    assert [control.kind for control in image.controls] == ["brush"]


def test_made_configuration_is_valid_for_label_studio() -> None:
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(make_label_config([ClassQuery(name) for name in ODD]))
    interface.validate()
    assert set(interface.get_control("brush").labels) == set(ODD)


@pytest.mark.parametrize("label", ["nul\0", "bell\a", "\ud800", "\uffff"])
def test_what_xml_cannot_hold_is_refused_in_words(label: str) -> None:
    with pytest.raises(QueryError, match="Label Studio cannot store"):
        make_label_config([ClassQuery(label)])


def test_500_labels() -> None:
    queries = [ClassQuery(f"class {i}") for i in range(500)]
    xml = make_label_config(queries)
    assert parse_label_config(xml).classes == tuple(queries)
    assert len({line.split("background=")[1][:9] for line in xml.splitlines() if "background=" in line}) > 480


@pytest.mark.slow
@pytest.mark.parametrize(
    "inner",
    [
        "".join(f'<Image name="i{number}" value="$image"/>' for number in range(20_000)),
        '<BrushLabels name="b" toName="x"><Label value="a"/>' * 5000 + "</BrushLabels>" * 5000,
        f'<BrushLabels name="b" toName="{"t,u," * 50_000}"><Label value="a"/></BrushLabels>',
        "".join(
            f'<BrushLabels name="b{number}" toName="i{number}"/><Image name="i{number}"/>' for number in range(9000)
        ),
        "<View>" * 50_000 + "</View>" * 50_000,
        " " * 3_000_000,
    ],
    ids=["images", "nested controls", "targets", "controls without labels", "nested", "long"],
)
def test_a_configuration_costs_no_more_than_its_length(inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that took 24 s is refused after a few looks at each element; they are counted."""
    looks = 0
    plain = elements.Tag.get

    def counted(tag: elements.Tag, name: str) -> str | None:
        nonlocal looks
        looks += 1
        return plain(tag, name)

    monkeypatch.setattr(elements.Tag, "get", counted)
    with pytest.raises(ConfigError):
        parse_label_config(f"<View>{inner}</View>")
    assert looks < 400_000
