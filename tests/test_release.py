"""`.ci/check_release.py` lets through what agrees, and names each thing that does not."""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import sit_deploy

ROOT = Path(__file__).parents[1]
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-11-27\n\n### Added\n\n- All of it.\n"


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_release", ROOT / ".ci/check_release.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(tree: Path, *words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *words], cwd=tree, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout of which version 0.1.0 can be released."""
    files = {
        "sit_deploy/__init__.py": 'raise ImportError("not to be imported")\n__version__ = "0.1.0"\n',
        "engines/cpp/CMakeLists.txt": "project(SitDeploy VERSION 0.1.0 LANGUAGES CXX)\n",
        "CHANGELOG.md": CHANGELOG,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def commit(tree: Path) -> None:
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "a change")


def change(tree: Path, name: str, old: str, new: str) -> None:
    text = (tree / name).read_text()
    assert old in text
    (tree / name).write_text(text.replace(old, new))
    commit(tree)


def test_what_agrees_is_let_through_before_its_tag_and_after(release: ModuleType, tree: Path) -> None:
    assert not list(release.wrong(tree, None))
    git(tree, "tag", "v0.1.0")
    assert not list(release.wrong(tree, None)) and not list(release.wrong(tree, "v0.1.0"))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("CHANGELOG.md", "[0.1.0]", "[0.0.9]", "newest heading of CHANGELOG.md is 0.0.9"),
        ("CHANGELOG.md", "## [0.1.0] - 2026-11-27\n", "", "newest heading of CHANGELOG.md is none"),
        ("CHANGELOG.md", " - 2026-11-27", "", "has no date"),
        ("CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n- Something.\n", "under [Unreleased]"),
        ("engines/cpp/CMakeLists.txt", "0.1.0", "0.0.9", "CMakeLists.txt is of another version"),
    ],
)
def test_what_does_not_agree_is_named(
    release: ModuleType, tree: Path, name: str, old: str, new: str, said: str
) -> None:
    change(tree, name, old, new)
    found = list(release.wrong(tree, None))
    assert any(said in line for line in found), found


def test_tags(release: ModuleType, tree: Path) -> None:
    (line,) = release.wrong(tree, "v0.1.0")
    assert line == "v0.1.0 is no tag of this commit; git tag -a v0.1.0 -m v0.1.0"
    git(tree, "tag", "v0.2.0")
    (line,) = release.wrong(tree, "v0.2.0")
    assert line == "the tag is v0.2.0, and __version__ asks for v0.1.0"
    (line,) = release.wrong(tree, None)
    assert line == "this commit has the tag v0.2.0, and __version__ asks for v0.1.0"
    git(tree, "tag", "-d", "v0.2.0")
    git(tree, "tag", "v0.1.0")
    change(tree, "CHANGELOG.md", "All of it", "All of it, again")
    (line,) = release.wrong(tree, None)
    assert line.startswith("v0.1.0 is the tag of another commit: it is released")


def test_changes_that_are_not_committed(release: ModuleType, tree: Path) -> None:
    (tree / "more.txt").touch()
    (line,) = release.wrong(tree, None)
    assert "not committed" in line


def test_the_version_is_written_once(release: ModuleType) -> None:
    assert release.version_of(ROOT) == sit_deploy.__version__
    library = (ROOT / "engines/cpp/CMakeLists.txt").read_text()
    assert f"project(SitDeploy VERSION {sit_deploy.__version__} " in library
    assert "version = attr: sit_deploy.__version__" in (ROOT / "setup.cfg").read_text()
