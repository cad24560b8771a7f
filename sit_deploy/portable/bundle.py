"""A bundle where sit-deploy is not: opened and verified by its hashes, and run.

Its manifest was checked field by field when the folder was written; here its digest says that it is still the same.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines.base import EngineOrigin
from engines.cpu import cpu_count
from engines.errors import EngineLoadError, EngineNotInstalledError, NoGpuError
from engines.gpus import find_gpus
from engines.graph_file import GraphNodes
from engines.strict_json import parse

from ..classifier import Classifier
from ..errors import InputError
from ..golden import read_golden
from ..hashes import digest, sha256
from ..outputs import Output, outputs_of
from ..preprocessing import Preprocessing
from ..text import is_utf8, shown

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1  # of what is written here
MANIFESTS = (1, 2)  # that are read; 2 has other outputs than logits
BUNDLES, BUILT, FOLDER = "bundles", "built", "folder.json"  # in a folder of `package python`
_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_AGAIN = "copy the folder again, or write it again with sit-deploy package python"


@dataclass(frozen=True)
class Engine:
    """The engine of a bundle: its own, or one that was built on this machine.

    Attributes:
        kind: of its runtime.
        path: of its file.
        origin: how it was built.
        built_on: system and architecture that it was built on, as ("Linux", "x86_64"); empty where that is not known.
        nodes: of its graph, that its layers and kernels are held to; None where they are not known.
        seconds: its build took.
        here: it was built by check.py.
    """

    kind: str
    path: Path
    origin: EngineOrigin
    built_on: tuple[str, str]
    nodes: GraphNodes | None
    seconds: float
    here: bool


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are as its manifest says.

    Attributes:
        path: its folder.
        fields: of manifest.json.
        engine: what runs it.
    """

    path: Path
    fields: Mapping[str, Any]
    engine: Engine

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def digest(self) -> str:
        """What it is known by: the digest of its manifest, which has the hash of every file."""
        return str(self.fields["digest"])

    @property
    def model(self) -> str:
        return str(self.fields["model"]["name"])

    @property
    def precision(self) -> str:
        return str(self.fields["precision"])

    @property
    def classes(self) -> list[str]:
        """Class names in label order; their numbers where the bundle has no names; none without logits."""
        if all(output.is_embedding for output in self.outputs):
            return []
        return self.fields["classes"] or [str(i) for i in range(self.fields["model"]["num_classes"])]

    @property
    def is_random(self) -> bool:
        """Whether its weights are nobody's: random numbers."""
        return bool(self.fields["weights"]["source"] == "random")

    @property
    def batch_range(self) -> tuple[int, int]:
        """Smallest and largest batch that the engine takes."""
        batch = self.fields["batch"]
        return batch.get("size") or batch["min"], batch.get("size") or batch["max"]

    @property
    def dynamic_batch(self) -> tuple[int, int, int] | None:
        """Smallest, best and largest batch; None where it takes one size."""
        batch = self.fields["batch"]
        return None if batch.get("size") else (batch["min"], batch["opt"], batch["max"])

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """What it is timed at: the size that it takes, or smallest, best and largest."""
        return tuple(dict.fromkeys(self.dynamic_batch or self.batch_range))

    @property
    def threads(self) -> int | None:
        """CPU threads that it was built for (`build --threads`); None leaves the choice to the runtime."""
        return self.fields["engine"].get("threads")

    def threads_for(self, asked: int | None) -> int | None:
        """Return the threads that it runs on: those asked for, else those it was built for, where there are as many CPUs."""
        if asked is not None or self.threads is None or not engines.get(self.engine.kind).on_cpu:
            return asked
        return min(self.threads, cpu_count())

    def preprocessing(self) -> Preprocessing:
        """Return how images are prepared for the engine."""
        return Preprocessing.from_dict(self.fields["preprocessing"])

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the engine gives, in order."""
        return outputs_of(self.fields)

    def golden(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the golden images as the engine takes them, and the reference's first output of them."""
        images, values = self.golden_outputs()
        return images, values[self.outputs[0].name]

    def golden_outputs(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the golden images, and every output of them by name, float32 (n, ...)."""
        return read_golden(self.path / "golden.npz", self.preprocessing(), self.outputs)


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle and verify it: the digest of its manifest, then the hash of every file.

    An engine that `check.py --build` built for it, in the folder's `built`, takes the place of its own.

    Raises:
        InputError: no bundle, one that was changed, of a newer schema, or an engine in `built` that is not of this bundle.
    """
    path = Path(path)
    manifest = path / "manifest.json"
    if not manifest.is_file():
        raise InputError(f"{path} is not a bundle: it has no manifest.json; name a folder below {BUNDLES}")
    fields = read_sealed(manifest, _AGAIN, MANIFESTS)
    try:
        verify(path, {name: file["sha256"] for name, file in fields["files"].items()}, _AGAIN)
        bundle = Bundle(path, fields, _own_engine(path, fields))
        bundle.preprocessing()
        bundle.outputs  # noqa: B018  raises for one that is no output
        built = _built_engine(bundle)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{manifest} is not as it should be ({type(error).__name__}: {error}); {_AGAIN}"
        ) from None
    return bundle if built is None else Bundle(path, fields, built)


def read_sealed(path: Path, remedy: str, schemas: tuple[int, ...] = (SCHEMA,)) -> dict[str, Any]:
    """Return the fields of a JSON file that carries a digest of itself.

    Args:
        path: of the file.
        remedy: what to do about a wrong one, for the end of the message.
        schemas: that are known.

    Raises:
        InputError: it cannot be read, was changed, or is of a newer schema.
    """
    try:
        fields = parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); {remedy}"
        ) from None
    if not isinstance(fields, dict) or fields.get("schema") not in schemas:
        raise InputError(f"{path} is of another schema than the {schemas[-1]} known here; {remedy}")
    if fields.get("digest") != digest(fields):
        raise InputError(f"{path} was changed: it does not match its digest; {remedy}")
    return fields


def verify(folder: Path, hashes: Mapping[str, str], remedy: str) -> None:
    """Hold files to their SHA-256.

    Raises:
        InputError: names the first that is missing or another.
    """
    for name, expected in hashes.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise InputError(f"{folder} lacks its file {name}; {remedy}")
        if sha256(file) != expected:
            raise InputError(f"{folder} was changed: {name} does not match its hash; {remedy}")


def load(path: str | Path, *, threads: int | None = None, device: str | None = None) -> Classifier:
    """Open a bundle for inference: `load("bundles/sit_s-fp32")(images)` gives logits, and `.predict("cat.jpg")` classes.

    Args:
        path: its folder.
        threads: CPU threads; what it was built for by default, or the runtime's choice.
        device: "cpu", "cuda" or "cuda:N"; by default the CPU for ONNX Runtime and the first GPU for TensorRT.

    Raises:
        InputError: not a whole and unchanged bundle.
        engines.EngineError: its runtime, or the GPU that it needs, is not here, or its engine is of another release or GPU.
    """
    bundle = open_bundle(path)
    return Classifier(open_engine(bundle, threads, device), bundle.batch_range, bundle)


def open_engine(bundle: Bundle, threads: int | None = None, device: str | None = None) -> engines.Runner:
    """Open the engine of a bundle, on the threads of `Bundle.threads_for`.

    Raises:
        engines.EngineError: it does not run here; the message names the bundle, why, and what mends that.
    """
    engine, runtime = bundle.engine, engines.get(bundle.engine.kind)
    require_platform(bundle)
    if runtime.on_cpu and not is_utf8(engine.path.absolute()):  # they open the file by its name
        raise EngineLoadError(
            f"{bundle.name}: {runtime.title} cannot open {shown(engine.path.absolute())}, whose name is no UTF-8; rename the folder, "
            "or use it through a symbolic link"
        )
    try:
        threads = bundle.threads_for(threads)
        return runtime.load(engine.path, threads=threads, device=device, origin=engine.origin)
    except EngineNotInstalledError as error:
        raise EngineNotInstalledError(
            f"{bundle.name}: {error.reason}", "run `pip install -r requirements.txt` of its folder"
        ) from None
    except NoGpuError as error:
        why = find_gpus().reason or str(error)
        raise NoGpuError(
            f"{bundle.name} is a {runtime.title} engine, which needs an NVIDIA GPU and its driver; none can be used here "
            f"({why}); copy the folder to a machine with one"
        ) from None
    except EngineLoadError as error:
        raise EngineLoadError(f"{bundle.name}: {error}") from None


def require_platform(bundle: Bundle) -> None:
    """Refuse a plan of another system or architecture, before TensorRT sees a byte of it; engines for a CPU run on any.

    TensorRT's plans are not portable across platforms (docs.nvidia.com/deeplearning/tensorrt/11.4.1/getting-started/
    support-matrix.html, "Engine Portability"); TensorRT-RTX's are across systems (developer.nvidia.com/tensorrt-rtx), and nothing
    says that they are across architectures.

    Raises:
        EngineLoadError: says which, and how to build it here.
    """
    engine, here = bundle.engine, (platform.system(), architecture())
    if engines.get(engine.kind).on_cpu or not all(engine.built_on):
        return
    if engine.built_on == here or (engine.kind == "tensorrt-rtx" and engine.built_on[1] == here[1]):
        return
    raise EngineLoadError(
        f"{bundle.name}: the engine was built on {' '.join(engine.built_on)}, and this is {' '.join(here)}, where its plan "
        f"does not run; build it here: {rebuild_command(bundle.name)}"
    )


def architecture() -> str:
    """Return the architecture of this machine, by Linux's name."""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


def rebuild_command(name: str) -> str:
    """Return what builds the engine of a bundle again, in its folder."""
    word = f"{BUNDLES}/{name}" if name.startswith("-") else name  # which would be an option
    return f"python check.py --build {shlex.quote(word)}"


def _own_engine(path: Path, fields: Mapping[str, Any]) -> Engine:
    facts = fields["engine"]
    origin = EngineOrigin(facts["version"], facts["target"], facts["details"], rebuild_command(path.name))
    described = _described(path, fields["digest"])
    return Engine(
        kind=facts["kind"],
        path=path / facts["file"],
        origin=origin,
        built_on=platform_of(fields.get("versions", {}).get("platform") or ""),
        nodes=read_nodes(described["nodes"]) if described else None,
        seconds=float(facts.get("build_seconds", 0.0)),
        here=False,
    )


def _described(path: Path, bundle: str) -> Mapping[str, Any]:
    """Return what folder.json says of a bundle; nothing for one that was put there by hand."""
    file = path.absolute().parent.parent / FOLDER
    if not file.is_file():
        return {}
    return read_sealed(file, _AGAIN)["bundles"].get(bundle, {})


def _built_engine(bundle: Bundle) -> Engine | None:
    folder = built_folder(bundle.path)
    if not (folder / "built.json").is_file():
        return None
    again = f"remove {folder}, or run {rebuild_command(bundle.name)}"
    facts = read_sealed(folder / "built.json", again)
    if facts["bundle"] != bundle.digest:
        raise InputError(
            f"{folder} was built of another bundle {bundle.name} than the one that is there now; {again}"
        )
    verify(folder, {facts["file"]: facts["sha256"]}, again)
    origin = EngineOrigin(facts["version"], facts["target"], facts["details"], rebuild_command(bundle.name))
    return Engine(
        kind=facts["kind"],
        path=folder / facts["file"],
        origin=origin,
        built_on=tuple(facts["built_on"]),
        nodes=read_nodes(facts["nodes"]),
        seconds=facts["seconds"],
        here=True,
    )


def read_nodes(fields: Mapping[str, Any]) -> GraphNodes:
    """Return the nodes of a graph that JSON fields are (`dataclasses.asdict` of them)."""
    return GraphNodes(fields["types"], tuple(fields["products"]), tuple(fields["attention"]))


def built_folder(bundle: Path) -> Path:
    """Return where the engine that is built here for a bundle lies."""
    return bundle.absolute().parent.parent / BUILT / bundle.name


def platform_of(text: str) -> tuple[str, str]:
    """Return system and architecture that `platform.platform()` told; empty where it names none that is known."""
    words = text.replace("_", "-").lower().split("-")
    joined = text.lower()
    known = {
        "x86_64": "x86_64" in joined or "amd64" in words,
        "aarch64": bool({"aarch64", "arm64"} & set(words)),
    }
    found = [name for name, there in known.items() if there]
    return text.partition("-")[0], found[0] if len(found) == 1 else ""
