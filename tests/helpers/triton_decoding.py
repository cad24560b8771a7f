"""The decoding model of a Triton repository in this process, beside a stand-in for the module that Triton gives it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import sit_deploy
from engines import cpu
from sit_deploy.preprocessing import Preprocessing


@dataclass
class Answer:
    """What Triton would send: tensors, or an error with its code."""

    tensors: Any = None
    error: Any = None


@contextlib.contextmanager
def decoding_model(preprocessing: Preprocessing) -> Iterator[Any]:
    """Give the model with its own copies of our files; `execute` takes arrays of bytes (n, 1), one a request, and gives `Answer`s."""
    backend = ModuleType("triton_python_backend_utils")
    error = type(
        "TritonError",
        (),
        {"INVALID_ARG": 400, "INTERNAL": 500, "__init__": lambda self, *a: setattr(self, "args", a)},
    )
    backend.TritonError = error
    backend.Tensor = lambda name, array: array
    backend.InferenceResponse = Answer
    backend.get_input_tensor_by_name = lambda request, _: SimpleNamespace(as_numpy=lambda: request)
    package = Path(sit_deploy.__file__).parent
    parts = ModuleType("sit_deploy_parts")
    parts.__path__ = [str(package)]
    with pytest.MonkeyPatch.context() as patch:
        # of `engines` one file lies beside the others as it is
        for name, module in (
            ("triton_python_backend_utils", backend),
            ("sit_deploy_parts", parts),
            ("sit_deploy_parts.cpu", cpu),
        ):
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location(
            "decode_model", package / "triton/python_models/decode.py"
        )
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        made = loaded.TritonPythonModel()
        config = {
            "input": [{"name": "image"}],
            "output": [{"name": "images"}],
            "parameters": {"preprocessing": {"string_value": json.dumps(preprocessing.to_dict())}},
        }
        made.initialize({"model_config": json.dumps(config)})
        yield made
        made.finalize()
        for name in [name for name in sys.modules if name.startswith("sit_deploy_parts.")]:
            del sys.modules[name]
