"""Writes Triton model repositories: a folder a model, whole or not at all, beside the models that are there already.

REPO/sit_s/          config.pbtxt · labels.txt · README.md · 1/model.plan, 1/model.onnx, or 1/model.py with engine.onnx or engine.xml
REPO/sit_s_decode/   config.pbtxt · 1/model.py          encoded images → what the network takes (--ensemble)
REPO/sit_s_images/   config.pbtxt · labels.txt · 1/     the ensemble of the two
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import engines
from engines.files import exchange, held
from sit_deploy import limits
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.files import scratch, uninterrupted
from sit_deploy.triton.chosen import choose_backend
from sit_deploy.triton.config import (
    LABELS,
    Serving,
    decode_config,
    ensemble_config,
    network_config,
    parse,
    protobuf,
    python_runtime,
    text,
)
from sit_deploy.triton.readme import readme

_CONFIG = "config.pbtxt"
# Triton takes names as they are; these are the ones that need no escaping in a URL, a shell or a path
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LONGEST_NAME = 200  # of the 255 that a folder's may have; others are made of it
_PARTS = "sit_deploy_parts"  # what the Python models import, beside them
_MODELS, _ENGINES = Path(__file__).parent / "python_models", Path(engines.__file__).parent
# what the session of a runtime imports of `engines`, by relative names where it is imported by others of these
_PARTS_OF = {
    "onnxruntime": ("cpu.py",),
    "openvino": (
        *("cpu.py", "errors.py", "imports.py", "install.py", "runner.py"),
        *(
            f"openvino/{name}.py"
            for name in ("__init__", "bfloat16", "instructions", "library", "runner", "types")
        ),
    ),
}


def write_repository(
    packages: Sequence[tuple[Bundle, Serving]], repository: Path, force: bool = False
) -> list[str]:
    """Add models to a repository, which is made where there is none; returns their names.

    A model that is there already gets another version, if it takes and gives the same.

    Args:
        packages: bundles, and how each is served.
        repository: its folder.
        force: replace versions that are there.

    Raises:
        InputError: a name Triton has trouble with, a version that is there, a folder that is no repository, or a bundle
            that its backend cannot serve; nothing is changed.
    """
    protobuf()
    for bundle, serving in packages:
        _check_serving(bundle, serving)
    _check_repository(repository)
    with scratch(repository) as folder:
        versions = {}
        for bundle, serving in packages:
            for name in _write_models(bundle, serving, folder):
                versions[name] = serving.version
                _check_model(folder / name, repository / name, serving.version, force)
        with uninterrupted():
            repository.mkdir(parents=True, exist_ok=True)
            with held(repository):
                for name, version in versions.items():  # again: another run may have been here
                    _check_model(folder / name, repository / name, version, force)
                for bundle, serving in packages:
                    _check_decoder(bundle, serving, folder, repository)
                _place_all(packages, folder, repository)
    return sorted(versions)


def _check_serving(bundle: Bundle, serving: Serving) -> None:
    if not _NAME.fullmatch(serving.name):
        raise InputError(
            f"model name {serving.name!r} is not allowed: use letters, digits, '_', '-' and '.'; pass another --name"
        )
    if len(serving.name) > _LONGEST_NAME:
        raise InputError(
            f"a model's name has at most {_LONGEST_NAME} letters, got {len(serving.name)}; pass another --name"
        )
    for number, least, most, what, example in (
        (serving.version, 1, 2**31 - 1, "a model's version is 1 or more", "--version 1"),
        (serving.instances, 1, 1024, "a model has 1 instance or more", "--instances 1"),
        (
            serving.max_queue_delay,
            0,
            limits.MICROSECONDS,
            "--max-queue-delay must be 0 or more microseconds",
            "--max-queue-delay 100",
        ),
        (serving.threads, 0, 4096, "--threads must be 0 or more", "--threads 0"),
        (max(serving.gpus, default=0), 0, 1023, "a GPU's number is 0 or more", "--gpus 0"),
    ):
        if not least <= number <= most:
            raise InputError(
                f"{what}{f' and at most {most}' if number > most else ''}, got {number}; pass {example}"
            )
    if serving.gpus and serving.backend == "python":
        raise InputError(
            "the Python backend's models run on the CPU; leave --gpus out, or pass another --backend"
        )
    choose_backend(bundle, serving.backend)


def _check_repository(repository: Path) -> None:
    """Refuse what is no place for models."""
    if not repository.exists():
        return
    if not repository.is_dir():
        raise InputError(f"output {repository} is not a folder; choose another with -o")
    foreign = [p.name for p in repository.iterdir() if p.is_dir() and not (p / _CONFIG).is_file()]
    foreign += [p.name for p in repository.iterdir() if not p.is_dir()]
    if foreign:
        raise InputError(
            f"{repository} is no model repository: it has {', '.join(sorted(foreign)[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}; choose an empty or new folder with -o"
        )
    if not os.access(repository, os.W_OK | os.X_OK):
        raise InputError(f"repository {repository} cannot be written; choose another with -o")


def _check_model(staged: Path, there: Path, version: int, force: bool) -> None:
    """Refuse to replace a version, or to give a model a version that takes or gives something else."""
    if not there.exists():
        return
    if (there / str(version)).exists() and not force:
        raise InputError(
            f"{there} has a version {version} already; pass --version {_next_version(there)}, another --name, or --force to "
            "replace it"
        )
    new, old = (parse((path / _CONFIG).read_text(encoding="utf-8")) for path in (staged, there))
    others = {p.name for p in there.iterdir() if p.name.isdecimal()} - {str(version)}
    if any(int(other) > version for other in others) and _for_all_versions(staged) != _for_all_versions(
        there
    ):
        raise InputError(
            f"{there} has a version newer than {version}, and it would be served with this bundle's labels and preprocessing; "
            f"pass --version {_next_version(there)}, or another --name"
        )
    if others and _contract(new) != _contract(old):
        raise InputError(
            f"{there} takes or gives something else ({_contract_text(old)}, now {_contract_text(new)}), and versions of a "
            "model share one configuration; pass another --name"
        )


def _for_all_versions(model: Path) -> tuple[str, str]:
    """What the newest version of a model is served with, whichever version it was written with: labels and preprocessing."""
    labels = model / LABELS
    config = parse((model / _CONFIG).read_text(encoding="utf-8"))
    preprocessing = config.parameters["preprocessing"].string_value
    return labels.read_text(encoding="utf-8") if labels.is_file() else "", preprocessing


def _contract(config: Any) -> tuple[Any, ...]:
    """What versions of a model have to have in common."""
    ends = [
        (t.name, t.data_type, tuple(t.dims)) for tensors in (config.input, config.output) for t in tensors
    ]
    return config.backend, config.platform, config.max_batch_size, tuple(ends)


def _contract_text(config: Any) -> str:
    pb = protobuf()
    input_, *outputs = (
        f"{pb.DataType.Name(tensor.data_type).removeprefix('TYPE_').lower()} {list(tensor.dims)}"
        for tensor in (config.input[0], *config.output)
    )
    names = [output.name for output in config.output]
    if names != ["logits"]:
        outputs = [f"{name} {output}" for name, output in zip(names, outputs, strict=True)]
    return (
        f"{config.backend or config.platform}, {input_} to {', '.join(outputs)}, "
        f"batches up to {config.max_batch_size}"
    )


def _next_version(model: Path) -> int:
    return max((int(p.name) for p in model.iterdir() if p.name.isdecimal()), default=0) + 1


def _check_decoder(bundle: Bundle, serving: Serving, folder: Path, repository: Path) -> None:
    """Refuse to give a network to a decoder and an ensemble that are there already and prepare images for another."""
    if serving.ensemble:
        return
    for name, wanted in (
        (serving.decoder, ("", json.dumps(bundle.preprocessing().to_dict()))),
        (serving.images, (_labels(bundle), "")),
    ):
        there = repository / name
        if (
            (there / _CONFIG).is_file()
            and not (folder / name).exists()
            and _for_all_versions(there) != wanted
        ):
            raise InputError(
                f"{there} prepares images, or names classes, for another network than this; pass --ensemble to replace it too, "
                "or another --name"
            )


def _place_all(packages: Sequence[tuple[Bundle, Serving]], folder: Path, repository: Path) -> None:
    """Move models from `folder` to their places, each in one step.

    A decoder and an ensemble that will prepare images or name classes differently are taken away first and come last: whoever
    is killed in between, or looks, finds models that belong together, or some missing.
    """
    names = sorted(path.name for path in folder.iterdir())
    written = {name: [path.name for path in (folder / name).iterdir()] for name in names}
    for name in names:
        _take_along(repository / name, folder / name)
    away = folder / "away"
    away.mkdir()
    for _, serving in packages:
        steps = [serving.images, serving.decoder] if serving.ensemble else []
        if any(_differ(folder / name, repository / name) for name in steps):
            for name in steps:
                if (repository / name).exists():
                    (repository / name).rename(away / name)
    last = {serving.images for _, serving in packages}
    for name in sorted(names, key=lambda name: (name in last, name)):
        _place(folder / name, repository / name, written[name])


def _differ(staged: Path, there: Path) -> bool:
    """Whether a model says something else than the one that is there, or it is not there."""
    return any(
        not (there / name).is_file() or (there / name).read_bytes() != (staged / name).read_bytes()
        for name in (_CONFIG, LABELS)
        if (staged / name).is_file()
    )


def _take_along(there: Path, staged: Path) -> None:
    """Link what a model has besides what was written for it, other versions above all, into what will replace it."""
    if not there.exists():
        return
    for path in there.iterdir():
        target = staged / path.name
        if target.exists():
            continue
        if path.is_dir():
            shutil.copytree(path, target, copy_function=_link)
        else:
            _link(path, target)


def _link(path: Any, target: Any) -> None:
    try:
        os.link(path, target)
    except OSError:  # a file system without
        shutil.copy2(path, target)


def _place(staged: Path, there: Path, written: Sequence[str]) -> None:
    """Move a model to its place in one step; where the system has no such step, its version first and the rest last.

    Args:
        staged: the model as written.
        there: its place.
        written: names in `made` that are new.
    """
    if not there.exists():
        staged.rename(there)
        return
    if exchange(staged, there):
        return  # the old one goes with the scratch folder
    for name in sorted(written, key=lambda n: (not n.isdigit(), n == _CONFIG)):
        target = there / name
        if target.is_dir():
            target.rename(staged / f"{name}.old")
        (staged / name).replace(target)


def _write_models(bundle: Bundle, serving: Serving, folder: Path) -> list[str]:
    """Write the models of one bundle into an empty folder; returns their names."""
    configs = {serving.name: network_config(bundle, serving)}
    if serving.ensemble:
        configs[serving.decoder] = decode_config(bundle, serving)
        configs[serving.images] = ensemble_config(bundle, serving)
    for name, config in configs.items():
        with contextlib.suppress(FileExistsError):
            (folder / name).mkdir()
        model, version = folder / name, folder / name / str(serving.version)
        if version.exists():
            raise InputError(
                f"two bundles would be version {serving.version} of model {name}; give each its own --name"
            )
        version.mkdir()
        (model / _CONFIG).write_text(text(config), encoding="utf-8")
        if any(output.label_filename for output in config.output):
            (model / LABELS).write_text(_labels(bundle), encoding="utf-8")
    _write_network(bundle, serving, folder / serving.name / str(serving.version))
    (folder / serving.name / "README.md").write_text(readme(bundle, serving), encoding="utf-8")
    if serving.ensemble:
        _write_python(
            folder / serving.decoder / str(serving.version),
            "decode.py",
            {
                **{name: _package(name) for name in ("preprocessing.py", "resampling.py")},
                "cpu.py": _ENGINES / "cpu.py",
                "errors.py": _MODELS / "errors.py",
            },
        )
        # git and archives drop empty folders, and Triton wants the version's
        (folder / serving.images / str(serving.version) / ".keep").touch()
    return list(configs)


def _write_network(bundle: Bundle, serving: Serving, version: Path) -> None:
    if serving.backend == "tensorrt":
        shutil.copyfile(bundle.engine_path, version / "model.plan")
    elif serving.backend == "onnxruntime":
        shutil.copyfile(
            bundle.model_path, version / "model.onnx"
        )  # standard operators: any release optimises it itself
    else:
        _write_on_cpu(bundle, version)


def _write_on_cpu(bundle: Bundle, version: Path) -> None:
    """Write our Python model with the engine of the bundle or, of one for a GPU, its graph."""
    runtime = python_runtime(bundle)
    session = {"session.py": _MODELS / f"{runtime}_session.py"}
    _write_python(
        version, "network.py", {**session, **{name: _ENGINES / name for name in _PARTS_OF[runtime]}}
    )
    engine = bundle.engine_path
    if bundle.manifest.engine.kind != runtime:
        engines.get(runtime).build(bundle.model_path, version / "engine.onnx", engines.BuildOptions())
    elif runtime == "openvino":
        for path in (engine, engine.with_suffix(".bin")):
            shutil.copyfile(path, version / f"engine{path.suffix}")
    else:
        shutil.copyfile(engine, version / "engine.onnx")


def _write_python(version: Path, model: str, parts: Mapping[str, Path]) -> None:
    """Write a model and, as a package beside it, parts by their places there; each is a copy of a module that knows only those."""
    shutil.copyfile(_MODELS / model, version / "model.py")
    for name, part in parts.items():
        place = version / _PARTS / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (place.parent / "__init__.py").touch()
        shutil.copyfile(part, place)
    for place in {version, *(path.parent for path in (version / _PARTS).rglob("*.py"))}:
        (place / "__pycache__").write_text(  # a file, where Python would make a folder of that name
            "Nothing is cached here: a server that watches would take it for a change.\n"
        )


def _package(name: str) -> Path:
    return Path(__file__).parents[1] / name


def _labels(bundle: Bundle) -> str:
    """One class a line; Triton knows no other way, so a line break in a name becomes a space."""
    return "".join(" ".join(name.split()) + "\n" for name in bundle.classes)
