"""The documents: generated parts are what the code says, and every page is in the site's navigation."""

import re
import shutil
import sys
from pathlib import Path

import markdown
import pytest
import yaml

from tools import docs, house

PAGES = sorted(path.relative_to(docs.DOCS).as_posix() for path in docs.DOCS.rglob("*.md"))
SITE = yaml.safe_load((docs.DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", sorted({name for name, _ in docs.BLOCKS}))
def test_generated_parts_are_what_the_code_says(document: str) -> None:
    text = (docs.DOCS / document).read_text(encoding="utf-8")
    assert text == docs.updated(document), "the document lags; run: python -m tools.docs"


def test_the_house_is_drawn_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (docs.DOCS / "house.svg").read_text(encoding="utf-8") == house.draw(), "run: python -m tools.docs"
    floor = house.FLOORS[0]
    monkeypatch.setattr(house, "FLOORS", (floor._replace(rooms=floor.rooms[1:]),))
    with pytest.raises(ValueError, match=r"the folders of lab differ: {'bench'}"):
        house.draw()


def test_braces_of_messages_reach_the_site() -> None:
    """Some extensions of Markdown take {words} for attributes, and swallow them."""
    text = (docs.DOCS / "doctor.md").read_text(encoding="utf-8")
    names = [name for entry in SITE["markdown_extensions"] for name in ([entry] if isinstance(entry, str) else entry)]
    shown = markdown.markdown(text, extensions=names)
    assert "nothing works without Redis: {error}" in shown
    assert re.findall(r"{\w+}", shown) == re.findall(r"{\w+}", text)


@pytest.mark.slow
def test_a_document_that_lags_is_shown_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(docs.DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr(docs, "DOCS", tmp_path / "docs")
    path = tmp_path / "docs" / "configuration.md"
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace("`LASAGNA_PORT`", "`LASAGNA_DOOR`"), encoding="utf-8")

    assert docs.main(["--check"]) == 1
    assert "-| `LASAGNA_DOOR`" in capsys.readouterr().out
    assert "LASAGNA_DOOR" in path.read_text(encoding="utf-8")
    assert docs.main([]) == 0
    assert path.read_text(encoding="utf-8") == right
    assert docs.main(["--check"]) == 0


def test_a_document_without_its_marks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    (tmp_path / "doctor.md").write_text("<!-- troubles -->", encoding="utf-8")
    with pytest.raises(ValueError, match=r"docs/doctor\.md needs <!-- troubles --> and <!-- /troubles -->"):
        docs.updated("doctor.md")


def test_a_command_that_cannot_be_loaded_is_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lab.bench.rle", raising=False)
    monkeypatch.setitem(sys.modules, "lab.bench.rle", None)
    with pytest.raises(SystemExit, match=r"docs/lab/commands.md: a command cannot be loaded; type `make setup`"):
        docs.main(["--check"])


def test_a_setting_without_a_group_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(docs._SETTINGS, "Logs", ("log_level", "log_level"))
    with pytest.raises(ValueError, match=r"put these settings into a group: \['log_format'\]"):
        docs.settings()


def test_every_command_and_setting_is_in_the_reference() -> None:
    commands = (docs.DOCS / "commands.md").read_text(encoding="utf-8")
    laboratory = (docs.DOCS / "lab" / "commands.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^#+ (lasagna [\w -]+)$", commands + laboratory, re.MULTILINE))
    assert {"lasagna annotate", "lasagna models pull", "lasagna jobs retry", "lasagna bench decode"} <= headings
    assert "--labels-file" in commands
    assert "| `LASAGNA_PREDICT_DEADLINE` | `45" in (docs.DOCS / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", [page for page in PAGES if page != "lab/log.md"])
def test_paths_of_the_repository_are_there(document: str) -> None:
    """Not in the log, whose entries name what was there at the time."""
    text = (docs.DOCS / document).read_text(encoding="utf-8")
    named = re.findall(r"`((?:lasagna|training|backend|lab|tools|tests|label_config)/[\w./-]*)`", text)
    to_come = {"training/data/sources/pets.py"}  # an example that the reader writes
    gone = sorted({path for path in named if not (docs.DOCS.parent / path).exists()} - to_come)
    assert not gone, f"docs/{document} names what is not there"


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those between the pages are checked by `zensical build --strict`."""
    links = re.findall(r"\]\((?!http)([^)#]+)", (docs.DOCS.parent / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (docs.DOCS.parent / link).exists()] == []


@pytest.mark.parametrize("document", ["../README.md", *PAGES])
def test_lines_are_short(document: str) -> None:
    """All but tables, code and pictures."""
    code, long = False, []
    for number, line in enumerate((docs.DOCS / document).read_text(encoding="utf-8").splitlines(), 1):
        code ^= line.startswith("```")
        if len(line) > 120 and not code and not line.startswith(("|", "    ", "![")):
            long.append(number)
    assert not long, f"docs/{document}: lines {long} are longer than 120 characters"


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [page for section in SITE["nav"] for page in _pages(section)]
    assert sorted(listed) == PAGES


def _pages(entry: str | dict[str, str | list[str]]) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    [below] = entry.values()
    return [below] if isinstance(below, str) else [page for one in below for page in _pages(one)]


def test_docstrings_say_what_they_mean() -> None:
    """A description is one, and no riddle about where another one may be."""
    riddles = re.compile(r"^\s*[\w, ]+: (See there|Theirs|Ours|Ditto|As above)\b", re.MULTILINE)
    sources = [path for top in ("lasagna", "training", "backend", "lab", "tools") for path in Path(top).rglob("*.py")]
    assert len(sources) > 300
    found = [f"{path}: {match[0].strip()}" for path in sources for match in riddles.finditer(path.read_text())]
    assert found == []
