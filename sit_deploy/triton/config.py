"""Triton's config.pbtxt of a bundle, made as the protobuf message that the server itself reads.

Fields and their meaning: Triton Inference Server, "Model Configuration".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.install import pip_install
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

BACKENDS = ("tensorrt", "onnxruntime", "python")
LABELS = "labels.txt"
IMAGE = "image"  # the encoded input of an ensemble

_PRECISIONS = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}


@dataclass(frozen=True)
class Serving:
    """How a bundle is to be served.

    Attributes:
        name: of the model in Triton.
        version: of it, at least 1.
        backend: one of `BACKENDS`.
        max_queue_delay: microseconds that a request may wait for others to make up a batch.
        instances: copies that run at a time, on each of `gpus`.
        threads: CPU threads of an instance (Python backend); 0 for the runtime's choice, or a share of the CPUs for several.
        ensemble: take encoded images too.
    """

    name: str
    version: int = 1
    backend: str = "python"
    max_queue_delay: int = 100
    instances: int = 1
    gpus: tuple[int, ...] = ()
    threads: int = 0
    ensemble: bool = False

    @property
    def decoder(self) -> str:
        """Name of the model that decodes images."""
        return f"{self.name}_decode"

    @property
    def images(self) -> str:
        """Name of the ensemble."""
        return f"{self.name}_images"


def python_runtime(bundle: Bundle) -> str:
    """Return the kind of engine that our Python model runs of a bundle: its own on OpenVINO, or its graph on ONNX Runtime."""
    return "openvino" if bundle.manifest.engine.kind == "openvino" else "onnxruntime"


def runs_own_engine(bundle: Bundle, backend: str) -> bool:
    """Whether a backend runs a bundle's engine, or its graph on the runtime that the engine is of; else its graph on ONNX Runtime."""
    runtime = python_runtime(bundle) if backend == "python" else backend
    return runtime == bundle.manifest.engine.kind


def protobuf() -> ModuleType:
    """Return the module of Triton's messages.

    Raises:
        InputError: the client library is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise InputError(
            f"Triton's client library is needed to write its configuration ({error}); "
            f"run {pip_install('tritonclient')}"
        ) from None
    return model_config_pb2


def text(config: Any) -> str:
    """Return a message as the text of config.pbtxt."""
    from google.protobuf import text_format

    return text_format.MessageToString(config)


def parse(content: str) -> Any:
    """Return the message that a config.pbtxt holds.

    Raises:
        InputError: it holds none.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(content, protobuf().ModelConfig())
    except text_format.ParseError as error:
        raise InputError(f"config.pbtxt is no model configuration of Triton ({error})") from None


def max_batch_size(bundle: Bundle, backend: str) -> int:
    """Return the largest batch that Triton may make; 0 is its word for an engine whose batch is no choice.

    Our Python model pads and cuts. The other backends get what Triton made, from one image on.
    """
    smallest, largest = bundle.batch_range
    if backend == "python":
        return largest
    if smallest == largest:
        return 0
    if smallest > 1:
        raise InputError(
            f"the engine of {bundle.path} takes batches of {smallest} to {largest}, and Triton makes smaller ones; build it "
            f"with --dynamic-batch 1:{bundle.batch_size}:{largest}, or pass --backend python, which fills them up"
        )
    return largest


def network_config(bundle: Bundle, serving: Serving) -> Any:
    """Return the configuration of the model that takes prepared images (n, ...) and gives outputs (n, ...)."""
    pb, largest = protobuf(), max_batch_size(bundle, serving.backend)
    preprocessing = bundle.preprocessing()
    fixed = [] if largest else [bundle.batch_size]
    kind, shape = _PRECISIONS[preprocessing.dtype], [*fixed, *preprocessing.shape]
    config = pb.ModelConfig(name=serving.name, backend=serving.backend, max_batch_size=largest)
    config.input.add(name="images", data_type=kind, dims=shape)
    _add_outputs(config, bundle, fixed)
    if serving.backend != "python":
        config.default_model_filename = "model.plan" if serving.backend == "tensorrt" else "model.onnx"
    _scheduling(config, bundle, serving)
    group = config.instance_group.add(count=serving.instances)
    if serving.backend == "tensorrt" or serving.gpus:
        group.kind = pb.ModelInstanceGroup.KIND_GPU
        group.gpus.extend(serving.gpus)
    else:
        group.kind = pb.ModelInstanceGroup.KIND_CPU
    for size in sorted({min(1, largest), largest}):
        warmup = config.model_warmup.add(name=f"batch {size or bundle.batch_size}", batch_size=size)
        warmup.inputs["images"].CopyFrom(pb.ModelWarmup.Input(data_type=kind, dims=shape, random_data=True))
    for key, value in _stamps(bundle, serving).items():
        config.parameters[key].string_value = value
    return config


def _add_outputs(config: Any, bundle: Bundle, fixed: list[int]) -> None:
    """Say what a model gives, each output by its name; logits have labels."""
    for output in bundle.outputs:
        labels = {} if output.is_embedding else {"label_filename": LABELS}
        config.output.add(
            name=output.name, data_type=_PRECISIONS[output.dtype], dims=[*fixed, *output.shape], **labels
        )


def _scheduling(config: Any, bundle: Bundle, serving: Serving) -> None:
    """Serve the newest version; make batches of single requests where the engine takes several."""
    config.version_policy.latest.num_versions = 1
    if config.max_batch_size > 1:
        preferred = sorted({min(bundle.batch_size, config.max_batch_size), config.max_batch_size})
        config.dynamic_batching.preferred_batch_size.extend(preferred)
        config.dynamic_batching.max_queue_delay_microseconds = serving.max_queue_delay


def _stamps(bundle: Bundle, serving: Serving) -> dict[str, str]:
    """Return what a repository tells of where its model came from, and what our Python model reads."""
    manifest = bundle.manifest
    smallest, largest = bundle.batch_range
    stamps = {
        "model": manifest.model.name,
        "precision": manifest.precision,
        "weights": manifest.weights.sha256 or manifest.weights.source,
        "bundle_digest": manifest.digest,
        "engine": f"{manifest.engine.kind} {manifest.engine.version}",
        "engine_target": manifest.engine.target,
        **({} if runs_own_engine(bundle, serving.backend) else {"runs": "the graph on ONNX Runtime"}),
    }
    if serving.backend == "python":
        stamps |= {"batch_min": str(smallest), "batch_max": str(largest), "threads": str(serving.threads)}
    return stamps


def decode_config(bundle: Bundle, serving: Serving) -> Any:
    """Return the configuration of the model that takes encoded images (n, 1) and gives prepared ones."""
    pb, preprocessing = protobuf(), bundle.preprocessing()
    config = pb.ModelConfig(
        name=serving.decoder, backend="python", max_batch_size=_ensemble_batch(bundle, serving)
    )
    config.input.add(name=IMAGE, data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(
        name="images", data_type=_PRECISIONS[preprocessing.dtype], dims=list(preprocessing.shape)
    )
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=serving.instances)
    config.parameters["preprocessing"].string_value = json.dumps(preprocessing.to_dict())
    return config


def ensemble_config(bundle: Bundle, serving: Serving) -> Any:
    """Return the configuration of the ensemble: encoded images (n, 1) → outputs (n, ...)."""
    pb = protobuf()
    config = pb.ModelConfig(
        name=serving.images, platform="ensemble", max_batch_size=_ensemble_batch(bundle, serving)
    )
    config.input.add(name=IMAGE, data_type=pb.TYPE_STRING, dims=[1])
    _add_outputs(config, bundle, [])
    names = {output.name: output.name for output in bundle.outputs}
    config.version_policy.latest.num_versions = 1
    for model, inputs, outputs in (
        (serving.decoder, {IMAGE: IMAGE}, {"images": "images"}),
        (serving.name, {"images": "images"}, names),
    ):
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        step.input_map.update(inputs)
        step.output_map.update(outputs)
    return config


def _ensemble_batch(bundle: Bundle, serving: Serving) -> int:
    largest = max_batch_size(bundle, serving.backend)
    if largest == 0:
        raise InputError(
            f"the engine of {bundle.path} takes a fixed batch, which an ensemble cannot feed; build it with "
            "--dynamic-batch 1:8:32, or pass --backend python"
        )
    return largest
