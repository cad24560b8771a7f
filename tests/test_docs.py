"""What the pages for people say of the tree is so: files that they name are there, and every folder is on the map."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "sit_deploy|engines|calibration|training|benchmarks|tests|docs"
# a path with an ending or a closing slash; <sit_deploy/x.hpp> is an include, and capitals are for the reader to fill in
PATH = re.compile(rf"(?<![\w/.<-])((?:{FOLDERS})/(?:[a-z_0-9]+/)*(?:[a-z_0-9]+\.\w+)?)(?![\w*/<])")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = set(PATH.findall(page.read_text(encoding="utf-8")))
    named = {path for path in named if not path.startswith("engines/reference")}  # of CONTRIBUTING's recipe
    folders = (ROOT, page.parent)
    assert not [path for path in sorted(named) if not any((folder / path).exists() for folder in folders)]


def test_every_folder_is_on_the_map() -> None:
    files = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    packages = {path.split("/")[1] for path in files if re.match(r"(sit_deploy|engines)/\w+/\w+\.py", path)}
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = page[page.index("## Where things are") : page.index("## Style")]
    assert {"models", "tensorrt"} <= packages
    assert not [name for name in sorted(packages) if not re.search(rf"[`/]{name}[`/]", text)]


@pytest.mark.parametrize(
    "module",
    re.findall(
        r"`(\w+)`",
        " ".join(re.findall(r"\| (?:checkpoint|float graph|precision) \|.*", PAGES[1].read_text())),
    ),
)
def test_modules_of_the_walk_are_there(module: str) -> None:
    assert list(ROOT.glob(f"sit_deploy/*/{module}.py"))
