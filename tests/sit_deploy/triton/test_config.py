from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sit_deploy.bundle import load_bundle
from sit_deploy.errors import InputError
from sit_deploy.triton.config import decode_config, ensemble_config, network_config, parse, protobuf, text
from tests.sit_deploy.conftest import CLASSES, Trained
from tests.sit_deploy.triton.conftest import as_tensorrt, serving

Copy = Callable[[Path], Path]


def test_a_tensorrt_engine_of_open_batch(nano_rtx: Path, copy_of: Copy) -> None:
    pb = protobuf()
    bundle = as_tensorrt(copy_of(nano_rtx), min=1, opt=8, max=32)
    config = network_config(
        bundle, serving(backend="tensorrt", gpus=(0, 2), instances=2, max_queue_delay=500)
    )
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert config.max_batch_size == 32
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus), group.count) == (pb.ModelInstanceGroup.KIND_GPU, [0, 2], 2)
    assert list(config.input[0].dims) == [3, 112, 112] and list(config.output[0].dims) == [1000]
    assert [(w.name, w.batch_size) for w in config.model_warmup] == [("batch 1", 1), ("batch 32", 32)]
    assert config.parameters["engine"].string_value == "tensorrt 10.9.0.34"
    assert config.parameters["engine_target"].string_value == "sm89 (NVIDIA L4)"


def test_a_fixed_batch_is_in_the_shape(nano_rtx: Path, copy_of: Copy) -> None:
    """Triton's word for an engine whose first dimension is no choice is max_batch_size 0."""
    bundle = as_tensorrt(copy_of(nano_rtx), size=1)
    config = network_config(bundle, serving(backend="tensorrt"))
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([1, 3, 112, 112], [1, 1000])
    assert [w.batch_size for w in config.model_warmup] == [0]
    with pytest.raises(InputError, match="fixed batch, which an ensemble cannot feed"):
        ensemble_config(bundle, serving(backend="tensorrt"))


def test_our_python_model_fills_up_what_triton_makes(trained: Trained) -> None:
    bundle = load_bundle(trained.bundle)
    config = network_config(bundle, serving())
    assert config.max_batch_size == 4 and list(config.dynamic_batching.preferred_batch_size) == [3, 4]
    assert (config.parameters["batch_min"].string_value, config.parameters["threads"].string_value) == (
        "2",
        "1",
    )
    for backend in ("onnxruntime", "tensorrt"):
        with pytest.raises(
            InputError, match="batches of 2 to 4, and Triton makes smaller ones; build it with"
        ):
            network_config(bundle, serving(backend=backend))


def test_an_ensemble_hangs_together(trained: Trained) -> None:
    bundle, how = load_bundle(trained.bundle), serving()
    network, decode, ensemble = (
        make(bundle, how) for make in (network_config, decode_config, ensemble_config)
    )
    first, second = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in (first, second)] == ["net_decode", "net"]
    assert decode.output[0].data_type == network.input[0].data_type
    assert list(decode.output[0].dims) == list(network.input[0].dims)
    assert ensemble.output[0].label_filename == network.output[0].label_filename == "labels.txt"
    assert list(ensemble.output[0].dims) == [len(CLASSES)]
    assert ensemble.max_batch_size == decode.max_batch_size == network.max_batch_size


def test_text_and_message_are_the_same(trained: Trained) -> None:
    config = network_config(load_bundle(trained.bundle), serving())
    assert parse(text(config)) == config
    with pytest.raises(InputError, match=r"config\.pbtxt is no model configuration"):
        parse("name: 3 {")
