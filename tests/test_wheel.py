"""What is released: the sdist and the wheel have every file of the four packages that a user needs, and nothing else."""

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sit_deploy

ROOT = Path(__file__).parents[1]
PACKAGES = ("calibration", "engines", "sit_deploy", "training")
LEFT_OUT = "engines/cpp/tests/"  # programs that only the tests build
pytestmark = pytest.mark.slow


def tracked() -> list[str]:
    """Every file that git has, or would have."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in found.splitlines() if (ROOT / name).is_file()]


def build(kind: str, source: Path, into: Path) -> Path:
    """Call the build backend as `python -m build` does, but without a network."""
    call = f"from setuptools import build_meta as b; b.build_{kind}({str(into)!r})"
    subprocess.run([sys.executable, "-c", call], cwd=source, check=True, capture_output=True)
    (made,) = into.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of the tree, and the wheel that is made of that sdist."""
    folder = tmp_path_factory.mktemp("released")
    for name in tracked():
        place = folder / "tree" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place, follow_symlinks=False)
    sdist = build("sdist", folder / "tree", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, build("wheel", unpacked, folder)


def shipped() -> set[str]:
    """The files of the packages, but for those that tests alone use."""
    return {
        name for name in tracked() if name.startswith(tuple(f"{package}/" for package in PACKAGES))
        and not name.startswith(LEFT_OUT)
    }  # fmt: skip


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(released: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(released[1]) as wheel:
        names = set(wheel.namelist())
        info = f"sit_deploy-{sit_deploy.__version__}.dist-info/"
        assert {name for name in names if not name.startswith(info)} == shipped()
        assert f"{info}licenses/LICENSE" in names
        assert all(wheel.read(name) == (ROOT / name).read_bytes() for name in shipped())
    assert released[1].name.endswith("-py3-none-any.whl")
    assert released[1].stat().st_size < 1_250_000  # source alone, no model and no picture


def test_the_sdist_has_what_the_wheel_is_made_of(released: tuple[Path, Path]) -> None:
    with tarfile.open(released[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    beside = {name for name in names - shipped() if not name.startswith("sit_deploy.egg-info/")}
    assert names >= shipped()
    assert beside == {
        *(
            "CHANGELOG.md",
            "CITATION.cff",
            "LICENSE",
            "MANIFEST.in",
            "PKG-INFO",
            "README.md",
            "constraints.txt",
        ),
        *("pyproject.toml", "setup.cfg"),
    }


def test_metadata_says_what_is_so(released: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(released[1]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Version"] == sit_deploy.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_payload(decode=True).decode() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2111.12624"]
    assert "Typing :: Typed" in metadata.get_all("Classifier")


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("training/cli/slim.py", "sit-deploy slim --help exited with 2"),  # the checkout's would be found
        ("sit_deploy/report/page.html.j2", "sit-deploy build --model sit_nano --engine onnxruntime"),
    ],
)
def test_trying_a_wheel_notices_a_file_that_it_lacks(
    released: tuple[Path, Path], tmp_path: Path, lost: str, said: str
) -> None:
    pytest.importorskip("pip", reason="needs pip")
    whole, poorer = released[1], tmp_path / released[1].name
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(poorer, "w") as target:
        for name in source.namelist():
            if name != lost:
                target.writestr(name, source.read(name))
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/try_wheel.py", poorer], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1, done.stdout
    assert f"the wheel fails: {said}" in done.stderr
