"""A folder that runs bundles where neither PyTorch nor sit-deploy is: bundles, the modules that run them, and a program that checks them.

DIR/  check.py · README.md · requirements.txt · folder.json · bundles/NAME/ · sit_bundle/ and engines/ (copies of our modules)
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import engines
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.files import place, scratch
from sit_deploy.hashes import digest
from sit_deploy.manifest import MANIFEST
from sit_deploy.outputs import can_be_reported
from sit_deploy.portable.bundle import BUNDLES, FOLDER, platform_of
from sit_deploy.text import file_name, is_utf8, shown

PACKAGE = "sit_bundle"  # what the modules are imported as there
_HERE = Path(__file__).parent
# what sit_deploy.portable imports of this package, by relative names
MODULES = (
    *(
        "classifier.py",
        "data/__init__.py",
        "data/batches.py",
        "data/given.py",
        "errors.py",
        "golden.py",
        "hashes.py",
        "interrupts.py",
        "limits.py",
    ),
    *("measure/__init__.py", "measure/layers.py", "measure/parity.py", "outputs.py", "precisions.py"),
    *("predictions.py", "preprocessing.py", "resampling.py", "text.py"),
    *(
        f"portable/{name}.py"
        for name in ("__init__", "build", "bundle", "check", "examine", "form", "record", "table")
    ),
)
# lower bounds of setup.cfg
_NEEDS = ("numpy>=1.26", "pillow>=10.0")
_GPU_NEEDS = ("pycuda>=2024.1", "cuda-bindings>=12.8")
_BUILD_NEEDS = "onnx>=1.21"

_INIT = '''"""Runs the bundles of this folder: with NumPy, Pillow and the engine's runtime; without PyTorch and sit-deploy."""

from importlib.util import find_spec
from pathlib import Path

_HOME = Path(__file__).resolve().parent.parent
_SPEC = find_spec("engines")
if _SPEC is None or _SPEC.origin is None or Path(_SPEC.origin).resolve().parent.parent != _HOME:
    raise ImportError(
        f"{_SPEC.origin if _SPEC else 'nothing'} is found as engines, and sit_bundle needs the one beside it; put {_HOME} first on "
        "the path (PYTHONPATH)"
    )

from engines.timing import TimingOptions  # noqa: E402

from .classifier import Classifier, ClassProbability, Prediction, top_classes  # noqa: E402
from .errors import Error, GateError, InputError  # noqa: E402
from .portable.bundle import Bundle, load, open_bundle  # noqa: E402

__all__ = [
    "Bundle",
    "ClassProbability",
    "Classifier",
    "Error",
    "GateError",
    "InputError",
    "Prediction",
    "TimingOptions",
    "load",
    "open_bundle",
    "top_classes",
]
'''

_README = """\
# {title}

Written by sit-deploy {version}. Needs Python 3.10 or newer, and what `requirements.txt` lists; no PyTorch, no sit-deploy.

    python -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python check.py            # is it here what was validated, and how fast? Prints a table, writes check.json

| bundle | model | precision | engine | runs on | batch | takes | hash |
|---|---|---|---|---|---|---|---|
{rows}

Images, from Python, with this folder as the current one or first in PYTHONPATH:

    import sit_bundle

{usage}

## check.py

It verifies every hash, runs the golden images that each bundle carries and holds the logits to PyTorch's, lists the engine's layers,
and times all bundles turn about, each batch size in a process of its own. `check.py NAME` takes one, `--rounds 0` times nothing,
`-o FILE` names the JSON, `--device cuda:1` picks a GPU, `--help` has the rest. Exit status: 0 good; 1 the golden outputs differ:
do not serve it here; 2 bad usage, or a bundle does not run on this machine, with the reason in one line.

`check.json` says what ran where: CPU, GPU, driver, clocks, releases; no host name and no path.{report}
{gpu}"""

_REPORT = """ Where sit-deploy is,
`sit-deploy report BUNDLE --measured check.json` takes it in{which}."""

_CLASSIFIES = """\
    with sit_bundle.load({first}) as classify:
        for found in classify.predict(["cat.jpg", "dog.jpg"], top=3):  # paths, bytes, open files, Pillow images or uint8 arrays
            print(found.name, found.probability, found.index)  # of the best; `found` lists all three
        logits = classify(["cat.jpg", "dog.jpg"])  # float32, a row an image

One image gives one result, a list a list. `classify.logits(array)` takes images that are prepared already."""

_EMBEDS = """\
    with sit_bundle.load({first}) as embed:
        found = embed.all_outputs(["cat.jpg", "dog.jpg"])  # paths, bytes, open files, Pillow images or uint8 arrays
        print({{name: values.shape for name, values in found.items()}})  # {outputs}

`embed.outputs(array)` takes images that are prepared already."""

_GPU_README = """
## On a GPU

A TensorRT engine runs in the release that built it, on the compute capabilities it was built for; where either differs,
check.py says which. Then build it there, from the bundle's model.onnx:

    venv/bin/pip install onnx
    venv/bin/python check.py --build -o check-built.json  # with full TensorRT where it is installed, else TensorRT-RTX (--engine)

TensorRT-RTX knows no H100, H200, GH200 (sm90) or B200 (sm100): there, `pip install tensorrt` first. It gives full TensorRT, which
builds for the GPU at hand and for no other. The engine goes to `built/NAME`, and from then on takes the place of the bundle's own,
for `load` too.

**If pip stops at PyCUDA**, nothing of requirements.txt was installed. PyCUDA is compiled: it needs a C++ compiler, and `cuda.h` and
`curand.h` of the CUDA toolkit, which a machine with a driver alone lacks. NVIDIA's development containers have them; docs/python.md of
sit-deploy takes them from PyPI. Bundles for ONNX Runtime and OpenVINO run without PyCUDA: take its line out, and check.py says of the
others what they lack.

Where TensorRT is installed already, as in NVIDIA's containers, leave its line of requirements.txt out. cuda-bindings is for CUDA
graphs.
"""


def write_folder(bundles: Sequence[Bundle], folder: Path) -> list[str]:
    """Write a folder of bundles, which is new or empty, whole or not at all; returns the names of the bundles in it.

    Raises:
        InputError: the folder has something in it, lies in a bundle, or cannot be written; a bundle that is there twice, or
            bundles that no one machine runs.
    """
    _check_place(bundles, folder)
    _check_together(bundles)
    names = _names(bundles)
    with scratch(folder) as staged:
        for name, bundle in zip(names, bundles, strict=True):
            there = staged / BUNDLES / name
            there.mkdir(parents=True)
            for file in (MANIFEST, *bundle.manifest.files):
                shutil.copyfile(bundle.path / file, there / file)
        _write_modules(staged)
        texts = {
            "requirements.txt": "\n".join(requirements(bundles)) + "\n",
            "README.md": _readme(names, bundles),
            FOLDER: _description(bundles),
        }
        for file, text in texts.items():
            (staged / file).write_text(text, encoding="utf-8")
        place(staged, folder)
    return names


def requirements(bundles: Sequence[Bundle]) -> list[str]:
    """Return the lines of requirements.txt: what runs these bundles, in releases that fit."""
    lines = list(_NEEDS)
    for kind, versions in sorted(_versions(bundles).items()):
        runtime = engines.get(kind)
        newest = max(versions, key=_as_numbers)
        if runtime.on_cpu:
            lines.append(f"{runtime.package}>={newest}")  # reads what earlier ones wrote
        elif len(newest.split(".")) < 4:  # the package has a number more than the library
            lines.append(f"{runtime.package}=={newest}.*")
        else:
            lines.append(f"{runtime.package}=={newest}")
    if any(not engines.get(kind).on_cpu for kind in _versions(bundles)):
        lines += [*_GPU_NEEDS, f"# {_BUILD_NEEDS}  for check.py --build alone"]
    return lines


def _versions(bundles: Sequence[Bundle]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for bundle in bundles:
        engine = bundle.manifest.engine
        found.setdefault(engine.kind, set()).add(engine.version)
    return found


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("."))


def _check_place(bundles: Sequence[Bundle], folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        what = "is a symbolic link" if folder.is_symlink() else "is not a folder"
        what = "has files in it" if folder.is_dir() and not folder.is_symlink() else what
        raise InputError(f"output {folder} {what}; choose a new or empty folder with -o")
    for bundle in bundles:
        if folder.resolve().is_relative_to(bundle.path.resolve()):
            raise InputError(f"output {folder} lies in the bundle {bundle.path}; choose another with -o")


def _check_together(bundles: Sequence[Bundle]) -> None:
    """Refuse bundles that one machine with one environment does not run, and the same one twice."""
    seen: dict[str, Bundle] = {}
    for bundle in bundles:
        if (other := seen.setdefault(bundle.manifest.digest, bundle)) is not bundle:
            raise InputError(f"{bundle.path} is the same bundle as {other.path}; leave one out")
    plans = [bundle for bundle in bundles if not engines.get(bundle.manifest.engine.kind).on_cpu]
    for bundle, other in itertools.combinations(plans, 2):
        a, b = bundle.manifest.engine, other.manifest.engine
        # the environment has the newer release
        older = min(a, b, key=lambda engine: _as_numbers(engine.version))
        if a.kind == b.kind and a.version != b.version and not older.details.get("version_compatible"):
            raise InputError(
                f"{bundle.path} was built by {engines.get(a.kind).title} {a.version} and {other.path} by {b.version}, and one "
                "environment has one release; package them apart, or build one again"
            )
        here, there = (platform_of(x.manifest.versions.get("platform") or "") for x in (bundle, other))
        if all(here) and all(there) and here[1] != there[1]:
            raise InputError(
                f"{bundle.path} was built for {here[1]} and {other.path} for {there[1]}, and one machine is one of them; "
                "package them apart"
            )


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """Return what each bundle's folder is called: as it is, or by what is in it where that is taken or no UTF-8."""
    names: list[str] = []
    for bundle in bundles:
        manifest, name = bundle.manifest, bundle.path.resolve().name
        taken = {other.casefold() for other in names}  # some file systems know no case
        if not is_utf8(name) or not name.isprintable() or name.casefold() in taken:
            batch = "-".join(map(str, dict.fromkeys(manifest.batch.range)))
            name = f"{file_name(manifest.model.name)}-{manifest.precision}-{manifest.engine.kind}-b{batch}"
        if name.casefold() in taken:
            name = f"{name}-{manifest.digest[:8]}"
        names.append(name)
    return names


def _write_modules(staged: Path) -> None:
    """Copy our modules as they are: there is one source of what runs a bundle."""
    package = staged / PACKAGE
    for module in MODULES:
        (package / module).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_HERE / module, package / module)
    (package / "__init__.py").write_text(_INIT, encoding="utf-8")
    (package / "py.typed").touch()
    shutil.copytree(
        Path(engines.__file__).parent,
        staged / "engines",
        ignore=shutil.ignore_patterns("cpp", "__pycache__", "*.pyc", ".*"),
        copy_function=shutil.copyfile,
    )
    shutil.copyfile(_HERE / "portable/script.py", staged / "check.py")


def _description(bundles: Sequence[Bundle]) -> str:
    """Return folder.json: what there would need onnx to be known, the nodes of each graph, by its bundle."""
    from engines.graph_file import GraphNodes

    described = {
        bundle.manifest.digest: {"nodes": asdict(GraphNodes.of(bundle.model_path))}
        for bundle in bundles
        if engines.get(bundle.manifest.engine.kind).reports_types
    }
    fields: dict[str, Any] = {"schema": 1, "bundles": described}
    fields["digest"] = digest(fields)
    return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"


def _readme(names: Sequence[str], bundles: Sequence[Bundle]) -> str:
    from sit_deploy import __version__

    rows = []
    for name, bundle in zip(names, bundles, strict=True):
        manifest, preprocessing = bundle.manifest, bundle.preprocessing()
        engine, (low, high) = manifest.engine, bundle.batch_range
        rows.append(
            f"| `{_cell(name)}` | {_cell(manifest.model.name)} | {manifest.precision} | {engines.get(engine.kind).title} {engine.version} | "
            f"{_cell(engine.target)} | {low if low == high else f'{low} to {high}'} | {preprocessing.dtype} "
            f"(n, {', '.join(map(str, preprocessing.shape))}) | {manifest.digest[:12]} |"
        )
    on_gpu = any(not engines.get(bundle.manifest.engine.kind).on_cpu for bundle in bundles)
    return _README.format(
        title=_cell(", ".join(dict.fromkeys(bundle.manifest.model.name for bundle in bundles))),
        version=__version__,
        rows="\n".join(rows),
        usage=(_CLASSIFIES if bundles[0].manifest.has_logits else _EMBEDS).format(
            first=json.dumps(f"{BUNDLES}/{names[0]}", ensure_ascii=False),
            outputs=", ".join(one.name for one in bundles[0].outputs),
        ),
        report=_report(bundles),
        gpu=_GPU_README if on_gpu else "",
    )


def _report(bundles: Sequence[Bundle]) -> str:
    """Return what takes check.json, of which bundles."""
    taken = [bundle for bundle in bundles if can_be_reported(one.name for one in bundle.outputs)]
    which = "" if len(taken) == len(bundles) else ", for bundles that give more than patches"
    return _REPORT.format(which=which) if taken else ""


def _cell(text: str) -> str:
    return shown(text).replace("|", "\\|")
