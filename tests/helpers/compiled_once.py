"""A compiler launcher (CMAKE_CXX_COMPILER_LAUNCHER) by which two builds of the same sources compile them once.

    compiled_once.py keep FOLDER c++ ARGUMENTS…    compiles, and keeps a copy of the object
    compiled_once.py take FOLDER c++ ARGUMENTS…    takes the one kept of the same text and the same options, or compiles

Options of warnings make no other object: builds that keep are those with warnings on, so that what is taken has passed them.
It is run by its path, and needs the standard library alone.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

# options whose value is a place of this build
_PLACES = ("-o", "-MF", "-MT", "-MQ", "-I", "-isystem")


def key_of(command: list[str]) -> str | None:
    """Return what tells an object from others: its preprocessed text, compiler and options; None if no object is made.

    What the command writes beside the object, the list of headers that it depends on, is written on the way.
    """
    if "-c" not in command or "-o" not in command or any(word.startswith("-g") for word in command):
        return None  # lines of a source, as debuggers want them, are no part of the key
    preprocess, options, words = [], [], iter(command)
    for word in words:
        if word == "-o":
            next(words)
        elif word in _PLACES:
            preprocess += [word, next(words)]
        else:
            preprocess += [word] if word != "-c" else []
            if not word.startswith(("-W", "-M", "-I", "-D")) and not word.endswith((".cpp", ".cxx")):
                options.append(word)
    done = subprocess.run([*preprocess, "-E", "-P"], capture_output=True)
    if done.returncode:
        return None  # compiling says why
    return hashlib.sha256("\0".join(options).encode() + b"\0\0" + done.stdout).hexdigest()


def main(how: str, folder: str, *command: str) -> int:
    """Compile, or take what was compiled; return the compiler's exit status."""
    key = key_of(list(command))
    if key is None:
        return subprocess.run(command).returncode
    kept, made = Path(folder, f"{key}.o"), command[command.index("-o") + 1]
    if how == "take" and kept.is_file():
        shutil.copyfile(kept, made)
        return 0
    status = subprocess.run(command).returncode
    if how == "keep" and not status:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, kept.with_suffix(".partial"))
        kept.with_suffix(".partial").replace(kept)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
