"""Programs that each ask for an interpreter of their own, and may have PyTorch in it: forks of one that has imported it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# `torchvision.ops` is most of what timm takes along, and knows neither timm nor us
_FORKS = """
import json, os, sys, tempfile
import torch, torchvision.ops
assert not {"timm", "sit_deploy", "engines", "training"} & sys.modules.keys()
ended = []
for program in json.load(sys.stdin):
    streams = [tempfile.TemporaryFile() for _ in range(2)]
    child = os.fork()
    if not child:
        for descriptor, stream in enumerate(streams, 1):
            os.dup2(stream.fileno(), descriptor)
        exec(compile(program, "a program", "exec"), {"__name__": "__main__"})
        sys.exit()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = [(stream.seek(0), stream.read().decode())[1] for stream in streams]
    ended.append([status, *texts])
json.dump(ended, sys.stdout)
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def run(programs: Sequence[str]) -> list[Ended]:
    """Run each, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", _FORKS],
        input=json.dumps(programs), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [Ended(*each) for each in json.loads(done.stdout)]
