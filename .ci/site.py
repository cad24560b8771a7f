"""What mkdocs needs to show this tree as it is: pages from outside docs/, files that pages link to, and the page of the API.

Pages are written for whoever reads them in the tree, where `../README.md` and `docs/python.md` are right. On the site README.md,
CONTRIBUTING.md and CHANGELOG.md stand beside the pages of docs/, and whatever else of the tree a page links to is copied.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")  # pages of the site, too
LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?(?=\))")
API = """\
# Python API

The public names of `sit_deploy`, from their docstrings; [python.md](python.md) says how they work together.

{names}
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/, the page of the API, and every file of the tree that a page links to."""
    for name in BESIDE:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    pages = [file for file in files if file.is_documentation_page()]
    names = "\n".join(f"::: sit_deploy.{name}" for name in public_names())
    files.append(File.generated(config, "api.md", content=API.format(names=names)))
    for page in pages:
        for match in LINK.finditer(page.content_string):
            path = in_tree(page.src_uri, match[2])
            uri = site_path(path)
            if uri == path and uri not in files.src_uris:
                if not (ROOT / path).is_file():
                    raise PluginError(f"{page.src_uri} links to {match[2]}, and {path} is no file")
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that are right in the tree be right on the site."""
    here = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        target = site_path(in_tree(here, match[2])) if here != "api.md" else match[2]
        return f"{match[1]}{relpath(target, PurePosixPath(here).parent)}{match[3] or ''}"

    return LINK.sub(moved, markdown)


def in_tree(page: str, link: str) -> str:
    """Return where in the tree a link leads from a page of the site."""
    folder = PurePosixPath(page if page in BESIDE else f"docs/{page}").parent
    return normpath(folder / link)


def site_path(path: str) -> str:
    """Return where a file of the tree is on the site."""
    return path.removeprefix("docs/")


def public_names() -> list[str]:
    """Return what `sit_deploy` offers, functions first, without importing it."""
    tree = ast.parse((ROOT / "sit_deploy/__init__.py").read_text(encoding="utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "__all__"
    )
    return sorted(names, key=lambda name: (name[0].isupper(), name))
