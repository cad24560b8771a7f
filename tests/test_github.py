"""What GitHub and its users read of the tree is well-formed, and says what is so here."""

import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
SCHEMAS = {
    ".github/workflows/ci.yml": "github-workflows",
    ".github/workflows/release.yml": "github-workflows",
    ".github/dependabot.yml": "dependabot",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/feature.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    "CITATION.cff": "citation-file-format",
}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def program(name: str) -> str:
    """A program beside this Python or on the path; the test is skipped where it is not installed."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or pytest.skip(f"needs {name}: pip install {name}")


def checks(*words: str | Path) -> None:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_is_held_to_a_schema() -> None:
    there = {path.relative_to(ROOT).as_posix() for path in GITHUB.rglob("*.yml")}
    assert there | {"CITATION.cff"} == set(SCHEMAS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_keeps_to_its_schema(name: str) -> None:
    schema = ("--builtin-schema", f"vendor.{SCHEMAS[name]}", "--default-filetype", "yaml")
    checks(program("check-jsonschema"), *schema, name)


@pytest.mark.slow
def test_a_schema_refuses_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "ci.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", wrong]
    assert subprocess.run(command, capture_output=True).returncode == 1


@pytest.mark.slow
def test_workflows_are_safe() -> None:
    checks(program("zizmor"), "--offline", "--quiet", ".github")


@pytest.mark.slow
def test_pre_commit_takes_its_file() -> None:
    checks(program("pre-commit"), "validate-config", ".pre-commit-config.yaml")


@pytest.mark.slow
def test_a_citation_can_be_made() -> None:
    checks(program("cffconvert"), "--validate", "-i", "CITATION.cff")


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_named_by_their_commits(workflow: Path) -> None:
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", one) for one in used)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_is_there(workflow: Path) -> None:
    lines = "\n".join(step.get("run", "") for step in steps(workflow))
    ours = re.findall(r"^(?:bash (\S+)|make ([\w-]+))", lines, re.M)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert ours or "gh release" in lines
    for script, target in ours:
        assert (ROOT / script).is_file() if script else target in targets


def test_ci_installs_what_some_tests_need() -> None:
    (command,) = [step["run"] for step in steps(GITHUB / "workflows/ci.yml") if "apt-get install" in step.get("run", "")]  # fmt: skip
    named = re.search(
        r"tests/engines/cpp` \| `apt-get install ([^`]+)`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    assert named and set(named[1].split()) <= set(command.split())


def test_ci_runs_the_pythons_that_are_promised() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    promised = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    job = read(GITHUB / "workflows/ci.yml")["jobs"]["run"]
    assert job["strategy"]["matrix"]["python"] == promised
    assert setup["options"]["python_requires"] == f">={promised[0]}"


def test_pre_commit_has_the_ruff_of_lint() -> None:
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    pinned = re.search(r"^ruff==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned and repository["rev"] == f"v{pinned[1]}"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


def test_a_bug_comes_with_what_doctor_says() -> None:
    body = read(GITHUB / "ISSUE_TEMPLATE/bug.yml")["body"]
    (doctor,) = [part for part in body if part["attributes"]["label"] == "sit-deploy doctor --json"]
    assert doctor["validations"] == {"required": True} and doctor["attributes"]["render"] == "json"


def test_the_citation_is_of_this_project_and_its_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert (citation["title"], citation["license"]) == ("sit-deploy", "MIT")
    assert "version" not in citation  # it is written in one place
    (paper,) = citation["references"]
    assert (
        paper["url"] in (ROOT / "setup.cfg").read_text() and paper["url"] in (ROOT / "README.md").read_text()
    )
    assert [author["family-names"] for author in paper["authors"]] == [
        *("Zong", "Li", "Song", "Wang", "Qiao", "Leng", "Liu"),
    ]  # fmt: skip
