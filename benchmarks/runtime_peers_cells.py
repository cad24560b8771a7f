"""What `runtime_peers.py` times: every way to run one model at one batch size, made and compared with PyTorch first.

A way is a module-level `open_*` function and its arguments, which a worker process can be given: it returns a function of
images, float32 (batch, 3, H, W), that gives the logits, (batch, classes).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import engines
from benchmarks.peer_environments import PEERS, environment, run
from benchmarks.random_weights import random_model
from benchmarks.runtime_peers_ways import (
    Logits,
    open_autocast,
    open_compiled,
    open_dynamic,
    open_eager,
    open_engine,
    open_half,
    open_onnxruntime,
    open_openvino,
    timed,
)
from engines.timing import WorkerSpec, machine

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4  # largest difference from eager in FP32, in standard deviations of the logits
CALIBRATION_IMAGES = 8
CHECKED_IMAGES = 8
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
REASON_LENGTH = 300  # characters; some libraries explain themselves in pages


# -------------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class Model:
    """A model with random weights, and what is made of it for all batch sizes.

    Attributes:
        calibration, images: float32 (n, 3, H, W), synthetic photographs, of which the latter serve to compare logits.
        reference: PyTorch's logits of `images`.
        graphs: ours, with an open batch, by precision; "int8 with stem" has the stem in 8 bits too. Those of 8 bits are there
            only where they were asked for.
    """

    name: str
    calibration: np.ndarray
    images: np.ndarray
    reference: np.ndarray
    graphs: dict[str, onnx.ModelProto]

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width in pixels."""
        return self.images.shape[2:]


WITH_STEM = "int8 with stem"


def make_model(name: str, threads: int, int8: bool = True) -> Model:
    """Export a model, and quantize it as `sit-deploy build --precision int8` does."""
    from sit_deploy.data.synthetic import synthetic_images
    from sit_deploy.graph.deploy_form import to_deploy_form
    from sit_deploy.graph.export import export_onnx
    from sit_deploy.models.catalog import get_config
    from sit_deploy.preprocessing import Preprocessing
    from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate
    from sit_deploy.quantize.image_stream import ImageStream
    from sit_deploy.quantize.quantizer import make_quantizer

    config = get_config(name)
    preprocessing = Preprocessing.for_model(
        config.image_size, config.crop_pct, config.interpolation, config.mean, config.std
    )
    calibration = ImageStream(
        synthetic_images(CALIBRATION_IMAGES), preprocessing, f"{CALIBRATION_IMAGES} synthetic images"
    )
    checked = ImageStream(synthetic_images(CHECKED_IMAGES, seed=1), preprocessing, "others")
    plain = random_model(name)
    graph = export_onnx(to_deploy_form(plain), plain.img_size, batch="batch")
    graphs = {"fp32": graph}
    if int8:
        found, _ = calibrate(graph, calibration, CalibrationMethod())
        for precision, groups in (("int8", None), (WITH_STEM, ("default", "stem"))):
            graphs[precision] = make_quantizer(graph, found, calibration, groups).quantized()
    images = np.concatenate(list(checked))
    return Model(name, np.concatenate(list(calibration)), images, open_eager(name, threads)(images), graphs)


@dataclass
class Setting:
    """One model at one batch size on so many threads; files go to `folder`, environments of peers are in `work`.

    Attributes:
        told: what peers answered, by their name: versions, and Optimum's refusal.
        tune_seconds: for `--quantize auto`.
        plans: what `--quantize auto` chose, by model and batch size.
    """

    model: Model
    batch: int
    threads: int
    folder: Path
    work: Path
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    plans: dict[tuple[str, int], str] = field(default_factory=dict)
    tune_seconds: float = 120

    def path(self, name: str) -> Path:
        return self.folder / f"{self.model.name}-b{self.batch}-{name}"

    @property
    def session_threads(self) -> int | None:
        """What a default session is told: nothing where it would choose the same."""
        return None if self.threads == machine().usable_cpus else self.threads

    @cached_property
    def plain(self) -> Path:
        """`torch.onnx.export(model, (images,), file)`, nothing else set."""
        import torch

        path = self.path("plain.onnx")
        images = torch.zeros(self.batch, 3, *self.model.size)
        with quietly():
            torch.onnx.export(random_model(self.model.name), (images,), path)
        return path

    def batches(self, images: np.ndarray) -> list[np.ndarray]:
        """Return images, float32 (n, 3, H, W), in batches of the right size: the last one begins with the first again."""
        filled = np.arange(-(-len(images) // self.batch) * self.batch) % len(images)
        return np.split(images[filled], len(filled) // self.batch)

    def ask(self, who: str, script: str, job: dict[str, str]) -> None:
        """Have a peer do a job in its own environment and a process of its own; `told` keeps its answer."""
        python = environment(who, self.work)
        asked, answer = self.path(f"{who}.job.json"), self.path(f"{who}.answer.json")
        asked.write_text(json.dumps(job), encoding="utf-8")
        run([str(python), str(PEERS / script), str(asked), str(answer)])
        self.told[who] = json.loads(answer.read_text(encoding="utf-8"))

    def logits(self, way: Callable[..., Logits], args: tuple[Any, ...]) -> np.ndarray:
        """Return the logits of the model's images."""
        run_batch = way(*args)
        parts = [np.asarray(run_batch(part)) for part in self.batches(self.model.images)]
        return np.concatenate(parts)[: len(self.model.images)]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the progress, logs and deprecations of others' tools."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


# ---------------------------------------------------------------------------------------------------------- candidates

Way = tuple[Callable[..., Logits], tuple[Any, ...]]


def _optimum(setting: Setting) -> Way:
    # its batch is open: once a model will do
    path = setting.folder / f"{setting.model.name}-optimum.onnx"
    if not path.exists():
        setting.ask("optimum", "optimum_export.py", {"model": setting.model.name, "output": str(path)})
    return open_onnxruntime, (path, setting.session_threads)


def _static(setting: Setting) -> Way:
    """quantize_static's defaults, after the preparation that ONNX Runtime's documentation advises."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, path = setting.path("prepared.onnx"), setting.path("static.onnx")

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self._feeds = iter([{name: part} for part in setting.batches(setting.model.calibration)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    with quietly():
        quant_pre_process(setting.plain, prepared)
        name = onnx.load(prepared, load_external_data=False).graph.input[0].name
        quantize_static(prepared, path, Reader(name))
    return open_onnxruntime, (path, setting.session_threads)


def _nncf(setting: Setting, precision: str = "f32") -> Way:
    path, images = setting.path("nncf.xml"), setting.path("calibration.npy")
    if path.exists():
        return open_openvino, (path, setting.threads, precision)
    np.save(images, np.concatenate(setting.batches(setting.model.calibration)))
    job = {"graph": str(setting.plain), "output": str(path), "images": str(images)}
    setting.ask("nncf-openvino", "nncf_openvino.py", {**job, "method": "default", "layers": []})
    return open_openvino, (path, setting.threads, precision)


def _ours(setting: Setting, kind: str, precision: str, half: str | None = None) -> Way:
    """An engine of ours: the graph of a precision, what of it is not in 8 bits in `half`."""
    import onnx

    from sit_deploy.graph.export import set_batch
    from sit_deploy.graph.norms import float_form
    from sit_deploy.graph.precision import to_precision

    engine = engines.get(kind)
    if half and (reason := engine.lacks(half)):
        raise RuntimeError(reason)
    name = f"{precision}-{half}" if half else precision
    source = setting.path(f"{name}.onnx")
    # each engine in a folder of its own: one kind's file is another's source
    path = setting.path(f"{kind}-{name}") / engine.filename
    path.parent.mkdir(exist_ok=True)
    graph = set_batch(setting.model.graphs[precision], setting.batch)
    if precision == "fp32":
        graph = float_form(graph, engine)
    onnx.save(to_precision(graph, half)[0] if half else graph, source)
    engine.build(source, path, engines.BuildOptions(threads=setting.threads))
    return open_engine, (kind, path, setting.threads)


def _auto(setting: Setting) -> Way:
    """What `sit-deploy build` chooses by measuring, by its public command line."""
    from safetensors.torch import save_model

    from sit_deploy.data.synthetic import synthetic_images
    from sit_deploy.report.build_types import BuildReport

    checkpoint, pictures = setting.path("random.safetensors"), setting.folder / "pictures"
    bundle = setting.path("auto")
    save_model(random_model(setting.model.name), str(checkpoint))
    pictures.mkdir(exist_ok=True)
    for index, picture in enumerate(synthetic_images(CALIBRATION_IMAGES)):
        picture.save(pictures / f"{index}.png")
    words = [
        *("build", "--model", setting.model.name, "--checkpoint", checkpoint, "--calib-data", pictures),
        *("--precision", "int8", "--quantize", "auto", "--engine", "openvino"),
        *(
            "--batch-size",
            setting.batch,
            "--threads",
            setting.threads,
            "--tune-seconds",
            setting.tune_seconds,
        ),
        *("--force", "-o", bundle),
    ]
    run([sys.executable, "-m", "sit_deploy", *map(str, words)])
    report = BuildReport.from_dict(json.loads((bundle / "report.json").read_text(encoding="utf-8")))
    tuning = report.quantization.tuning
    if tuning.chosen is None:
        raise RuntimeError(f"nothing was chosen: {tuning.verdict}")
    setting.plans[setting.model.name, setting.batch] = tuning.chosen.words(tuning.default)
    return open_engine, ("openvino", bundle / "engine.xml", setting.threads)


@dataclass(frozen=True)
class Candidate:
    """A way to run a model: `key` for the command line and the results, `title` for people.

    Attributes:
        ours: by sit-deploy.
    """

    key: str
    title: str
    precision: str
    make: Callable[[Setting], Way]
    ours: bool = False


def _our_candidates(precision: str) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            f"{kind}-{precision}",
            f"**sit-deploy**, {title}",
            precision,
            lambda setting, kind=kind: _ours(setting, kind, precision),
            ours=True,
        )
        for kind, title in ENGINES.items()
    )


PLAIN = "plain"  # what the others are compared with
CANDIDATES = (
    Candidate("eager", "PyTorch eager", "fp32", lambda s: (open_eager, (s.model.name, s.threads))),
    Candidate("compiled", "torch.compile", "fp32", lambda s: (open_compiled, (s.model.name, s.threads))),
    Candidate(
        PLAIN,
        "plain export, ONNX Runtime",
        "fp32",
        lambda s: (open_onnxruntime, (s.plain, s.session_threads)),
    ),
    Candidate("optimum", "Optimum's export, ONNX Runtime", "fp32", _optimum),
    Candidate(
        "plain-openvino", "plain export, OpenVINO", "fp32", lambda s: (open_openvino, (s.plain, s.threads))
    ),
    *_our_candidates("fp32"),
    Candidate(
        "autocast", "torch.compile, autocast", "bf16", lambda s: (open_autocast, (s.model.name, s.threads))
    ),
    Candidate(
        "half", "torch.compile, BF16 weights", "bf16", lambda s: (open_half, (s.model.name, s.threads))
    ),
    Candidate(
        "plain-openvino-bf16",
        "plain export, OpenVINO",
        "bf16",
        lambda s: (open_openvino, (s.plain, s.threads, "bf16")),
    ),
    Candidate(
        "openvino-bf16",
        "**sit-deploy**, OpenVINO",
        "bf16",
        lambda s: _ours(s, "openvino", "fp32", "bf16"),
        ours=True,
    ),
    Candidate(
        "dynamic", "quantize_dynamic, PyTorch", "int8", lambda s: (open_dynamic, (s.model.name, s.threads))
    ),
    Candidate("static", "quantize_static, ONNX Runtime", "int8", _static),
    Candidate("nncf", "NNCF, OpenVINO", "int8", _nncf),
    Candidate("nncf-bf16", "NNCF in BF16, OpenVINO", "int8", lambda s: _nncf(s, "bf16")),
    *_our_candidates("int8"),
    # its kernels make the stem faster, ONNX Runtime's do not
    Candidate(
        "openvino-int8-stem",
        "**sit-deploy** `--quantize default,stem`, OpenVINO",
        "int8",
        lambda s: _ours(s, "openvino", WITH_STEM),
        ours=True,
    ),
    Candidate(
        "openvino-int8-stem-bf16",
        "**sit-deploy** `--quantize default,stem --rest bf16`, OpenVINO",
        "int8",
        lambda s: _ours(s, "openvino", WITH_STEM, "bf16"),
        ours=True,
    ),
    Candidate("openvino-int8-auto", "**sit-deploy** `--quantize auto`, OpenVINO", "int8", _auto, ours=True),
)


@dataclass
class Cell:
    """A candidate for one model and batch size: how far its logits are from PyTorch's and what times it, or why it is left out."""

    candidate: Candidate
    skipped: str | None = None
    error: float | None = None
    worker: WorkerSpec | None = None

    def __post_init__(self) -> None:
        if self.skipped:
            self.skipped = shortened(self.skipped)

    def fail(self, why: str) -> None:
        """Leave out what was to be timed; a reason that is there already stays."""
        self.skipped, self.worker = self.skipped or shortened(why), None


def prepare(candidate: Candidate, setting: Setting) -> Cell:
    """Make a candidate and compare its logits; what cannot be made or is wrong is a result of the comparison."""
    reference = setting.model.reference.astype(np.float64)
    try:
        with quietly():
            way, args = candidate.make(setting)
            difference = setting.logits(way, args) - reference
    except Exception as error:
        return Cell(candidate, skipped=f"{type(error).__name__}: {error}")
    if candidate.precision == "fp32":
        found = float(np.abs(difference).max() / reference.std())
        if not found <= TOLERANCE:
            return Cell(candidate, f"its logits differ by {found:.1e} of their standard deviation", found)
    else:
        found = float(10 * np.log10(np.square(reference).sum() / np.square(difference).sum()))
        if not math.isfinite(found):
            return Cell(candidate, "its logits are not finite")
    shape = (setting.batch, 3, *setting.model.size)
    return Cell(candidate, error=found, worker=WorkerSpec(timed, (way, args, shape), setting.batch))


def shortened(text: str) -> str:
    """A reason on one line."""
    line = " ".join(text.split())
    return line if len(line) <= REASON_LENGTH else f"{line[:REASON_LENGTH]}…"
