"""What the pages for people tell them to type, read as Markdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from sit_deploy.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_NOT_RUN = re.compile(r"<!-- not run: (?:lines? ([\d, ]+): )?(.+?) -->")
_ENDS = re.compile(r"&&|\|\|?|;|>+|<|&")  # of a command, between words
_LANGUAGES = ("sh", "console")


@dataclass(frozen=True)
class Block:
    """A fence of shell lines. `why_not` is what the comment before it says of not running it, or those of `without` alone."""

    page: Path
    line: int
    language: str
    text: str
    why_not: str
    without: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Where it stands: `docs/slim.md:7`."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A `sit-deploy` that somebody may type: the words behind it, and whether the page only speaks of it or of a part of it."""

    where: str
    words: tuple[str, ...]
    mentioned: bool = False


def blocks(page: Path) -> Iterator[Block]:
    """Give a page's fences of shell lines (`sh`) and of what a terminal showed (`console`)."""
    before = ""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            before = token.content
        elif token.type == "fence" and token.info in _LANGUAGES:
            place, reason = (token.map or [0])[0] + 1, _NOT_RUN.fullmatch(before.strip())
            without = tuple(map(int, (reason[1] or "").split(", "))) if reason and reason[1] else ()
            yield Block(page, place, token.info, token.content, reason[2] if reason else "", without)
        if token.type != "html_block":
            before = ""


def lines(block: Block) -> list[str]:
    """Return the lines that are typed, those that end in a backslash joined; of a terminal those behind a prompt, and advice in it."""
    text = re.sub(r"\\\n\s*", "", block.text)
    if block.language == "sh":
        return [line for line in text.splitlines() if line.strip()]
    return [m[1] for m in re.finditer(r"^(?:\$ |  (?=sit-deploy ))(.*)$", text, re.M)]


def run_lines(block: Block) -> list[str]:
    """Return the lines of a fence that are to be run."""
    if block.language != "sh" or (block.why_not and not block.without):
        return []
    return [line for number, line in enumerate(lines(block), 1) if number not in block.without]


def commands(line: str, where: str) -> Iterator[Command]:
    """Give the commands of ours in a shell line, `python -m sit_deploy` and a container's among them.

    Raises:
        ValueError: the quotes of the line do not match.
    """
    words = shlex.split(line, comments=True)
    starts = [i for i, word in enumerate(words) if _is_ours(words, i)]
    for start in starts:
        rest = words[start + 1 :]
        end = next((i for i, word in enumerate(rest) if _ENDS.fullmatch(word)), len(rest))
        yield Command(where, tuple(rest[:end]))


def _is_ours(words: list[str], i: int) -> bool:
    before = words[i - 1] if i else ""
    if before == "-t":  # the name of an image, when it is built
        return False
    return words[i] in ("sit-deploy", "sit-deploy-build") or words[i].endswith("/sit-deploy") or (
        words[i] == "sit_deploy" and before == "-m"
    )  # fmt: skip


def inline(page: Path) -> Iterator[Command]:
    """Give the commands in a page's sentences and tables: whole ones that begin with `sit-deploy`, and parts of others."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            if child.type == "code_inline" and _NAMED.match(child.content):
                where = f"{page.relative_to(ROOT)}: `{child.content}`"
                text = child.content.replace("…", "").replace(r"\|", "|")
                for form in {re.sub(r"[\[\]]", "", text), re.sub(r"\[[^\]]*\]", "", text)}:
                    whole = form.startswith("sit-deploy ")
                    for found in commands(form if whole else f"sit-deploy {form}", where):
                        yield Command(where, found.words, not whole or _is_mention(found.words))


def _is_mention(words: tuple[str, ...]) -> bool:
    """Say whether words are a command's name alone, or that and one option without a value."""
    names = [word for word in words if not word.startswith("-")]
    return len(words) - len(names) <= 1 and (len(names) == 1 or names in (["package", n] for n in _PARTS))


_PARTS = ("triton", "cpp", "python")
_NAMED = re.compile(rf"sit-deploy [a-z]|(?:{'|'.join(COMMANDS)}) (?:.* )?--[a-z]")
