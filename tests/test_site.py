"""The pages as a site (`make site`): what is broken ends the build, and it shows what the tree shows."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.helpers.pages import PAGES, ROOT
from tests.helpers.shared import shared

_MISSING = "needs mkdocs and what it takes along: pip install '.[docs]'"
pytest.importorskip("mkdocs", reason=_MISSING)
pytest.importorskip("material", reason=_MISSING)
pytest.importorskip("mkdocstrings_handlers.python", reason=_MISSING)
pytestmark = pytest.mark.slow

# Python-Markdown, which makes the site, and CommonMark, by which GitHub shows the tree, part ways where these do not agree
SHAPE = {"ol", "ul", "li", "pre", "table", "tr", "h1", "h2", "h3", "strong", "em", "img"}


def build(tree: Path, into: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", into],
        cwd=tree,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        done = build(ROOT, folder)
        assert done.returncode == 0, done.stderr

    return shared(tmp_path_factory, "site", make)


class Tags(HTMLParser):
    """Counts the tags of a page that give it its shape, and gathers the anchors."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count.update({tag} & SHAPE)
        self.anchors |= {value for name, value in attrs if name == "id" and value}


def shown(site: Path, page: Path) -> str:
    """The HTML of a page's own text."""
    name = page.relative_to(ROOT / "docs" if page.is_relative_to(ROOT / "docs") else ROOT)
    file = site / ("index.html" if name == Path("README.md") else name.with_suffix(".html"))
    (article,) = re.findall(r"<article[^>]*>(.*?)</article>", file.read_text(encoding="utf-8"), re.S)
    return article


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_shape_that_it_has_in_the_tree(site: Path, page: Path) -> None:
    plain = MarkdownIt("commonmark", {"html": True}).enable("table").render(page.read_text(encoding="utf-8"))
    assert Tags(shown(site, page)).count == Tags(plain).count


def test_the_reference_has_every_public_name_with_what_its_docstring_says(site: Path) -> None:
    tree = ast.parse((ROOT / "sit_deploy/__init__.py").read_text(encoding="utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    html = (site / "api.html").read_text(encoding="utf-8")
    assert {f"sit_deploy.{name}" for name in names} <= Tags(html).anchors
    for words in (
        "turn about, each in a process of its own",
        "is called with a step",
    ):
        assert words in re.sub(r"<[^>]+>|\s+", lambda m: " " if m[0].isspace() else "", html)


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=\"?(https?:[^\" >]+)", html)
        loaded += re.findall(r"<link[^>]*rel=\"?stylesheet\"?[^>]*href=\"?(https?:[^\" >]+)", html)
        assert not loaded, page


def break_and_build(tmp_path: Path, *broken: tuple[str, str]) -> str:
    """Add texts to pages of a copy of the tree, and return what the build says, which must fail."""
    for name in (".ci", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("sit_deploy", "engines", "calibration", "training", "benchmarks", "tests", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    for page, text in broken:
        with (tmp_path / page).open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_broken_links_and_anchors_and_pages_outside_the_navigation_end_the_build(tmp_path: Path) -> None:
    said = break_and_build(
        tmp_path,
        ("docs/slim.md", "[a page](slimmer.md)"),
        ("docs/slim.md", "[an anchor](python.md#eggs)"),
        ("docs/tasks/timm.md", "[an anchor](../../README.md#ham)"),
        ("README.md", "[an anchor](docs/python.md#spam)"),
        ("docs/unheard.md", "# Not in the navigation"),
    )
    warnings = [line for line in said.splitlines() if line.startswith("WARNING")]
    for words in ("'slimmer.md'", "#eggs", "#ham", "#spam"):
        assert sum(words in line for line in warnings) == 1, said
    assert "unheard.md" in said and f"Aborted with {len(warnings)} warnings" in said and len(warnings) == 5


def test_a_link_to_a_file_of_the_tree_that_is_not_there_ends_the_build(tmp_path: Path) -> None:
    said = break_and_build(tmp_path, ("docs/slim.md", "[a file](../benchmarks/results/no.json)"))
    assert "slim.md links to ../benchmarks/results/no.json, and benchmarks/results/no.json is no file" in said
