"""A C++ project of a bundle: the bundle, the library's sources, a program, and one command that builds them.

DIR/  build.sh · CMakeLists.txt · main.cpp · README.md · bundle/ · sit_deploy/ (the library, from engines/cpp)
"""

from __future__ import annotations

import shutil
from pathlib import Path

import engines
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.files import place, scratch

_SOURCES = Path(engines.__file__).parent / "cpp"

_BUILD = """\
#!/bin/sh
# Builds build/{program}. Takes options for cmake, as -DTENSORRT_ROOT=/usr/local/tensorrt. OpenVINO is found through Python,
# which has it by `pip install openvino`; PYTHON says which Python.
set -e
cd "$(dirname "$0")"
openvino=$("${PYTHON:-python3}" -c 'import openvino.utils as u; print(u.get_cmake_path())' 2>/dev/null) || openvino=
case "$*" in *TENSORRT_ROOT*) tensorrt=yes ;; *) tensorrt= ;; esac
if [ -z "$openvino$tensorrt" ]; then
    echo "no OpenVINO for ${PYTHON:-python3}: run pip install openvino, or pass -DTENSORRT_ROOT=..." >&2
    exit 1
fi
cmake -S . -B build ${openvino:+"-DOpenVINO_DIR=$openvino"} "$@"
cmake --build build --parallel
"""

_CMAKE = """\
cmake_minimum_required(VERSION 3.18)
project({program} LANGUAGES CXX)
add_subdirectory(sit_deploy)
add_executable({program} main.cpp)
target_link_libraries({program} PRIVATE sit_deploy::sit_deploy)
add_executable(check sit_deploy/examples/sit_check.cpp)
target_link_libraries(check PRIVATE sit_deploy::sit_deploy)
"""

_EMBEDS = " other.jpg  # its first output, and how alike the pictures are"
_README = """\
# {model} in {precision}, in C++

    ./build.sh                          # OpenVINO on a CPU: pip install openvino
    ./build.sh -DTENSORRT_ROOT=DIR      # TensorRT on a GPU, for a bundle built for it
    build/check bundle                  # does it give what was validated?
    build/{program} bundle photo.jpg{more}

Needs a C++17 compiler, CMake 3.18, and libjpeg, libpng and OpenSSL with their headers (on Debian or Ubuntu: apt-get install
g++ cmake libjpeg-dev libpng-dev libssl-dev), and libwebp-dev to decode WebP. `main.cpp` is yours to change; `sit_deploy/include` has the interface.
Made by sit-deploy from bundle {digest}.
"""


def write_project(bundle: Bundle, folder: Path) -> str:
    """Write the project into a folder that is new or empty, whole or not at all; returns the name of its program.

    Raises:
        InputError: the folder has something in it, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not a folder" if not folder.is_dir() else "has files in it"
        raise InputError(f"output {folder} {what}; choose a new or empty folder with -o")
    program, more = ("classify", "") if bundle.manifest.has_logits else ("embed", _EMBEDS)
    with scratch(folder) as staged:
        shutil.copytree(bundle.path, staged / "bundle")
        shutil.copytree(_SOURCES, staged / "sit_deploy", ignore=shutil.ignore_patterns("tests"))
        shutil.copyfile(_SOURCES / f"examples/sit_{program}.cpp", staged / "main.cpp")
        (staged / "CMakeLists.txt").write_text(_CMAKE.replace("{program}", program), encoding="utf-8")
        (staged / "build.sh").write_text(_BUILD.replace("{program}", program), encoding="utf-8")
        (staged / "build.sh").chmod(0o755)
        manifest = bundle.manifest
        (staged / "README.md").write_text(
            _README.format(
                program=program,
                more=more,
                model=manifest.model.name,
                precision=manifest.precision,
                digest=manifest.digest[:12],
            ),
            encoding="utf-8",
        )
        place(staged, folder)
    return program
