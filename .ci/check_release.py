"""Checks that version, changelog and tag of a release agree, before anything is handed out.

python .ci/check_release.py              # the tag may come after
python .ci/check_release.py --tag v0.1.0 # there is a tag, and this is it
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_HEADING = re.compile(r"^## \[([^]]+)\](.*)$", re.M)
_DATE = re.compile(r" - \d{4}-\d{2}-\d{2}")


def version_of(root: Path) -> str:
    """Return `__version__` of sit_deploy, where alone the version is written; nothing is imported."""
    for node in ast.parse((root / "sit_deploy/__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise SystemExit(f"{root}/sit_deploy/__init__.py has no __version__")


def wrong(root: Path, tag: str | None) -> Iterator[str]:
    """Give what keeps a tree from being released, a line each.

    Args:
        root: the checkout.
        tag: the tag that is to be released; None where none is there yet.
    """
    version = version_of(root)
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = list(_HEADING.finditer(text))
    released = [one for one in headings if one[1] != "Unreleased"]
    if not released or released[0][1] != version:
        newest = released[0][1] if released else "none"
        yield (
            f"__version__ is {version}, and the newest heading of CHANGELOG.md is {newest}; write `## [{version}] - YYYY-MM-DD` above "
            "what is released, or set __version__ in sit_deploy/__init__.py"
        )
    elif not _DATE.fullmatch(released[0][2]):
        yield f"the heading of {version} in CHANGELOG.md has no date; write `## [{version}] - YYYY-MM-DD`"
    if headings and headings[0][1] == "Unreleased":
        end = headings[1].start() if len(headings) > 1 else len(text)
        if re.search(r"^- ", text[headings[0].end() : end], re.M):
            yield "CHANGELOG.md has entries under [Unreleased]; move them below the heading of this release"
    library = (root / "engines/cpp/CMakeLists.txt").read_text(encoding="utf-8")
    if f"project(SitDeploy VERSION {version} " not in library:
        yield f"engines/cpp/CMakeLists.txt is of another version; write project(SitDeploy VERSION {version} …)"
    yield from _wrong_in_git(root, f"v{version}", tag)


def _wrong_in_git(root: Path, wanted: str, tag: str | None) -> Iterator[str]:
    if _git(root, "status", "--porcelain"):
        yield "the tree has changes that are not committed; commit them, since a release is made of a commit"
    here = _git(root, "tag", "--points-at", "HEAD", "v*").split()
    if tag is not None and tag != wanted:
        yield f"the tag is {tag}, and __version__ asks for {wanted}"
    if tag is not None and tag not in here:
        yield f"{tag} is no tag of this commit; git tag -a {wanted} -m {wanted}"
    for other in here:
        if other not in (wanted, tag):
            yield f"this commit has the tag {other}, and __version__ asks for {wanted}"
    if wanted not in here and _git(root, "tag", "--list", wanted):
        yield f"{wanted} is the tag of another commit: it is released; set a new __version__ in sit_deploy/__init__.py"


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def main() -> None:
    """Print what is wrong and exit with status 1, or say what comes next."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tag", help="the tag that is released; without it, there may be none yet")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the checkout")
    given = parser.parse_args()
    found = list(wrong(given.root, given.tag))
    for line in found:
        print(line, file=sys.stderr)
    if found:
        sys.exit(1)
    version = version_of(given.root)
    tagged = f"v{version}" in _git(given.root, "tag", "--points-at", "HEAD").split()
    after = (
        ""
        if tagged
        else f"; when it is to be released: git tag -a v{version} -m v{version}, and push the tag"
    )
    print(f"version {version}, its changelog and its {'tag' if tagged else 'tree'} agree{after}")


if __name__ == "__main__":
    main()
