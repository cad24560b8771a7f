#!/usr/bin/env python3
"""Half an hour on a GPU machine that can fetch nothing: python3 benchmarks/on_device.py [--limit SECONDS] STEP...

Run from the project's root, with packages in packs or without (docs/gpu.md, "Half an hour on a GPU"). Every step runs in
processes of its own and ends before the limit. The folder $OUT, or ~/gpu/out, gets result.md (to read), result.json and log.txt.

    facts    the machine, and which packages are missing there
    train    FRD in mixed precision on JPEGs: images a second, waiting for them; NCCL in a world of one
    smoke    whether TensorRT-RTX runs on this GPU; if so, a bundle built, validated and timed with it
    tests    pytest -m gpu, the small models first
    bench    benchmarks/gpu.py
    trt86    full TensorRT 8.6 in a Python 3.10 of its own: a model, its tests, a bundle
    exports  graphs for the next, begun in the background
    trt86_table  its engines beside PyTorch, eager and compiled
    portable a folder of `package python`, whose check.py --build uses TensorRT 8.6
    commands train, slim, build and validate on the GPU, as a user does
    teachers of benchmarks/frd_ablation.py
    starts   benchmarks/warm_start.py with them, begun in the background
    ortcuda  ONNX Runtime with CUDA
    keep     nothing more than every call does: packs that came along are kept, and unpacked once they are complete
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path.cwd()  # and not this file's folder: it may be a copy
LIMIT = 560.0  # seconds, where none are given


def main(words: list[str]) -> int:
    """Run steps one after another and write their results.

    Args:
        words: of the command line.

    Returns:
        The exit status: 0 where no step failed, 1 where one did, 2 for a wrong command.
    """
    started = time.perf_counter()
    if not (ROOT / "setup.cfg").is_file() or not (ROOT / "engines").is_dir():
        print("error: not the project's root; cd to it first", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    from benchmarks.gpu_machine.packs import unpack_complete
    from benchmarks.gpu_machine.session import Session, StepFailed
    from benchmarks.gpu_machine.steps import STEPS

    limit = LIMIT
    if words[:1] == ["--limit"] and len(words) > 1 and words[1].isdecimal():
        limit, words = float(words[1]), words[2:]
    unknown = [word for word in words if word not in STEPS]
    if not words or unknown:
        print(f"error: no step {unknown[0]}\n" if unknown else "", __doc__, sep="", file=sys.stderr)
        return 2
    home = Path.home() / "gpu"
    out = Path(os.environ.get("OUT") or home / "out")
    session = Session(
        kit=Path(__file__).resolve().parent, root=ROOT, home=home, out=out, deadline=started + limit
    )
    for folder in (out, home):
        folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict] = {}
    try:
        unpack_complete(session)
    except StepFailed as error:
        # steps that need none of it run all the same: the machine is lent for minutes
        session.say(f"error: {error}")
        results["packs"] = {"failed": str(error)}
    for word in words:
        began = time.perf_counter()
        try:
            results[word] = STEPS[word](session)
        except StepFailed as error:
            results[word] = {"failed": str(error)}
        results[word]["seconds"] = round(time.perf_counter() - began, 1)
        (out / "result.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(f"## {step}\n{_listing(result)}" for step, result in results.items())
    (out / "result.md").write_text(text + "\n", encoding="utf-8")
    print("=" * 40, text, sep="\n", flush=True)
    return int(any("failed" in result for result in results.values()))


def _listing(values: dict, indent: str = "") -> str:
    """Return nested values as a list in Markdown."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}- {key}:", _listing(value, indent + "  ")]
        else:
            lines.append(f"{indent}- {key}: {str(value)[:500]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
