"""docs/cpp.md taken at its word: its commands, its CMakeLists.txt and its programs are run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sit_deploy.bundle import load_bundle
from sit_deploy.data.image_files import list_images
from sit_deploy.inference import load
from sit_deploy.preprocessing import load_image
from tests.engines.cpp.conftest import SOURCES, Programs, cmake_arguments, launcher
from tests.helpers.shared import shared
from tests.sit_deploy.conftest import CLASSES, Trained

PAGE = (Path(__file__).parents[3] / "docs/cpp.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow  # each compiles, and they share what is compiled


def block(language: str, has: str) -> str:
    """Return the only block of the page in a language that has these words."""
    (found,) = [text for text in re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S) if has in text]
    return found


@dataclass(frozen=True)
class User:
    """Someone with a home folder, whose python3 is ours; `launcher` is CMake's, of compilers."""

    folder: Path
    launcher: str

    def shell(self, commands: str, cwd: Path) -> str:
        """Run what a page says, each command of which must end well; returns what it prints."""
        done = self.attempt(commands, cwd)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    def attempt(self, commands: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run it, however it ends."""
        environment = {key: os.environ[key] for key in ("LANG", "TMPDIR") if key in os.environ}
        environment |= {
            "HOME": str(self.folder / "home"),
            "CMAKE_CXX_COMPILER_LAUNCHER": self.launcher,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }
        return subprocess.run(
            ["sh", "-ec", commands], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
        )


@pytest.fixture(scope="session")
def user(release: Programs, tmp_path_factory: pytest.TempPathFactory) -> User:
    """The library, installed by the commands of the page into the prefix that they name, and the checkout gone.

    Objects are those of `release`, where they are of the same text.
    """
    take = launcher("take", tmp_path_factory)

    def make(folder: Path) -> None:
        cmake_arguments()
        for name in ("home", "bin", "checkout/engines"):
            (folder / name).mkdir(parents=True)
        python = folder / "bin/python3"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        shutil.copytree(SOURCES, folder / "checkout/engines/cpp")
        User(folder, take).shell(block("sh", "cmake --install"), folder / "checkout")
        shutil.rmtree(folder / "checkout")

    return User(shared(tmp_path_factory, "page", make), take)


@dataclass(frozen=True)
class Project:
    """The page's project, outside the checkout and beside the bundles and the photo that its programs name."""

    user: User
    folder: Path

    def __call__(self, has: str) -> str:
        """Build and run it, as the page says, with the program that has these words; returns what it prints."""
        (self.folder / "main.cpp").write_text(block("cpp", has))
        out = self.user.shell(block("sh", "build/yours"), self.folder)
        return out.partition("Built target yours\n")[2]


@pytest.fixture(scope="module")
def yours(
    user: User, trained: Trained, nano_embeddings: Path, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """The project with no program yet."""
    folder = tmp_path_factory.mktemp("yours")
    (folder / "CMakeLists.txt").write_text(block("cmake", "find_package"))
    (folder / "sit_s-cpu").symlink_to(trained.bundle)
    (folder / "sit_s-features").symlink_to(nano_embeddings)
    with Image.open(list_images(trained.images)[0]) as image:
        image.save(folder / "photo.jpg", quality=95)

    return Project(user, folder)


def test_the_first_program(yours: Project, trained: Trained) -> None:
    lines = yours('load_image("photo.jpg")))').splitlines()
    with load(trained.bundle) as classify:
        logits = classify(yours.folder / "photo.jpg")[0]
    odds = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-logits)[:5]
    assert [line.rsplit(" ", 1)[0] for line in lines] == [CLASSES[i] for i in order]
    assert np.allclose([float(line.rsplit(" ", 1)[1]) for line in lines], odds[order], atol=2e-3)


def test_the_program_that_embeds(yours: Project, nano_embeddings: Path) -> None:
    values = np.array(yours("embedder").split(), float)
    prepared = load_bundle(nano_embeddings).preprocessing()(load_image(yours.folder / "photo.jpg"))
    with load(nano_embeddings) as embed:
        expected = embed.outputs(prepared[None])["features"][0]
    assert values.shape == expected.shape and np.abs(values - expected).max() < 1e-3 * expected.std()


def test_the_program_with_pixels(yours: Project, trained: Trained) -> None:
    lines = yours("PixelFormat::bgr").splitlines()
    with load(trained.bundle) as classify:
        best = CLASSES[int(classify(np.full((480, 640, 3), 127, np.uint8)).argmax())]
    assert [line.rsplit(" ", 1)[0] for line in lines] == [best, best]


def test_the_program_with_a_camera_compiles(user: User, tmp_path: Path) -> None:
    """With OpenCV's headers where they are, else with declarations of ours."""
    (tmp_path / "main.cpp").write_text(block("cpp", "cv::VideoCapture"))
    declarations = Path(__file__).parent / "declarations"
    user.shell(
        f"flags=$(pkg-config --cflags opencv4 2>/dev/null) || flags='-isystem {declarations}'\n"
        'c++ -std=c++17 -Wall -Wextra -Werror -fsyntax-only -I"$HOME/sit_deploy/include" $flags main.cpp',
        tmp_path,
    )


def test_openvino_that_is_elsewhere_now(user: User, tmp_path: Path) -> None:
    """A prefix whose OpenVINO is gone says so with the way out, which works."""
    shutil.copytree(user.folder / "home/sit_deploy", tmp_path / "prefix")
    (config,) = (tmp_path / "prefix").rglob("SitDeployConfig.cmake")
    (where,) = [argument.partition("=")[2] for argument in cmake_arguments()]
    assert where in config.read_text()
    config.write_text(config.read_text().replace(where, "/gone/openvino"))
    (tmp_path / "CMakeLists.txt").write_text(block("cmake", "find_package"))
    (tmp_path / "main.cpp").write_text(block("cpp", 'load_image("photo.jpg")))'))
    configure = f"cmake -S . -B build -DCMAKE_PREFIX_PATH='{tmp_path / 'prefix'}' "
    done = user.attempt(configure, tmp_path)
    said = " ".join(done.stderr.split())
    assert done.returncode and "/gone/openvino, which is not there now; pass -DOpenVINO_DIR with" in said, (
        said
    )
    user.shell(
        configure
        + "-DOpenVINO_DIR=\"$(python3 -c 'import openvino.utils as u; print(u.get_cmake_path())')\"",
        tmp_path,
    )
