"""On a real GPU with a real TensorRT: what the fakes of test_runner.py stand for elsewhere.

`python -m pytest -m gpu` runs these and those of tests/sit_deploy/test_gpu.py.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import engines
from engines import BuildOptions, EngineError, EngineInputError, EngineLoadError, EngineOrigin

pytestmark = pytest.mark.gpu

TOLERANCE = 1e-5


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engine(request: pytest.FixtureRequest) -> engines.Engine:
    found = engines.get(request.param)
    answer = found.probe()
    if not answer.can_run:
        pytest.skip(f"{request.param} does not run here: {answer.reason}")
    return found


@pytest.fixture
def build(engine: engines.Engine, tmp_path: Path) -> Callable[..., tuple[Path, EngineOrigin]]:
    def make(source: Path, **options: object) -> tuple[Path, EngineOrigin]:
        target = tmp_path / "engine.plan"
        # where the library builds for named GPUs, for this one: its defaults may leave it out
        if engine.kind == "tensorrt-rtx":
            options.setdefault("compute_capabilities", ("current",))
        info = engine.build(source, target, BuildOptions(**options))
        return target, EngineOrigin(info.version, info.target, info.details)

    return make


def images(batch: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 8)).astype(np.float32)


def expected(model: Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model).run(None, {"x": x})[0]


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * np.abs(b).max())


@pytest.mark.parametrize("graph", [False, True])
def test_runs_what_the_graph_says(engine, build, make_mlp, graph: bool):
    model = make_mlp()
    plan, origin = build(model)
    with engine.load(plan, origin=origin, cuda_graph=graph) as runner:
        for seed in range(5):
            close(runner.infer({"x": images(seed=seed)})["y"], expected(model, images(seed=seed)))
        assert runner.last_gpu_seconds > 0
        assert runner.notes == []


def test_open_batch(engine, build, make_mlp):
    model = make_mlp(batch="batch")
    plan, origin = build(model, dynamic_batch=(1, 4, 16))
    with engine.load(plan, origin=origin) as runner:
        for batch in (1, 4, 4, 4, 16, 3, 16, 16, 16):
            close(runner.infer({"x": images(batch)})["y"], expected(model, images(batch)))
        with pytest.raises(EngineInputError, match="outside what the engine takes"):
            runner.infer({"x": images(17)})


def test_two_threads(engine, build, make_mlp):
    model = make_mlp(batch="batch")
    plan, origin = build(model, dynamic_batch=(1, 4, 16))
    wrong: list[str] = []
    known = {(t, n): expected(model, images(1 + n % 16, seed=t)) for t in range(2) for n in range(200)}

    def work(number: int) -> None:
        for turn in range(200):
            got = runner.infer({"x": images(1 + turn % 16, seed=number)})["y"]
            if not np.allclose(got, known[number, turn], rtol=1e-4, atol=1e-4):
                wrong.append(f"{number}, {turn}")

    with engine.load(plan, origin=origin, contexts=2) as runner:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_thousand_loads_leak_nothing(engine, build, make_mlp):
    plan, origin = build(make_mlp())

    def free() -> int:
        query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0"]
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout)

    def load_and_run() -> None:
        with engine.load(plan, origin=origin) as runner:
            runner.infer({"x": images()})

    for _ in range(20):  # the library's own first allocations
        load_and_run()
    before = free()
    for _ in range(1000):
        load_and_run()
    assert before - free() <= 64  # MiB; others may use the GPU a little


def test_torch_tensors_stay_on_the_gpu(engine, build, make_mlp):
    torch = pytest.importorskip("torch")
    model = make_mlp(batch="batch")
    plan, origin = build(model, dynamic_batch=(1, 4, 16))
    with engine.load(plan, origin=origin) as runner:
        for batch in (4, 4, 4, 1, 16, 16, 16):
            x = torch.from_numpy(images(batch)).cuda()
            doubled = runner.infer_device({"x": x * 2})["y"]  # the product is still being computed
            close((doubled / 2).cpu().numpy(), expected(model, images(batch)))
        assert runner.captured == 1 and runner.notes == []
        close(runner.infer({"x": images(16)})["y"], expected(model, images(16)))  # own memory again
        with pytest.raises(EngineInputError, match="move it with"):
            runner.infer_device({"x": torch.zeros(4, 8)})
        with pytest.raises(EngineInputError, match="not contiguous"):
            runner.infer_device({"x": torch.zeros(4, 16, device="cuda")[:, ::2]})


def test_a_captured_call_on_torch_tensors_allocates_nothing(engine, build, make_mlp):
    torch = pytest.importorskip("torch")
    model = make_mlp(batch="batch")
    plan, origin = build(model, dynamic_batch=(1, 4, 16))
    x = torch.zeros(4, 8, device="cuda")
    with engine.load(plan, origin=origin) as runner:
        out = runner.infer_device({"x": x})
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for seed in range(20):
                    x.copy_(torch.from_numpy(images(4, seed)))
                    before = torch.cuda.memory_stats()["allocation.all.allocated"]
                    runner.infer_device({"x": x}, out)
                    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
                    close(out["y"].cpu().numpy(), expected(model, images(4, seed)))
        assert runner.captured == 1 and runner.notes == []


def test_stale(engine, build, make_mlp):
    plan, origin = build(make_mlp())
    with pytest.raises(EngineLoadError, match="is installed; install"):
        engine.load(plan, origin=EngineOrigin("0.0.1", origin.target))
    if engine.kind == "tensorrt":  # TensorRT-RTX judges for itself
        with pytest.raises(EngineLoadError, match="was built for sm10"):
            engine.load(plan, origin=EngineOrigin(origin.version, "sm10"))


OPENS = """
import sys
from pathlib import Path
import engines
try:
    engines.get(sys.argv[1]).load(Path(sys.argv[2]))
except engines.EngineLoadError as error:
    print(error)
"""


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_plan_that_was_cut_short(engine, build, make_mlp, share: float):
    """In a process of its own, which a library may end that trusts the sizes in a plan; nothing here hands it such a one."""
    plan, _ = build(make_mlp())
    whole = plan.read_bytes()
    plan.write_bytes(whole[: int(len(whole) * share)])
    command = [sys.executable, "-c", OPENS, engine.kind, str(plan)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode < 0:
        pytest.xfail(
            f"{engine.title} ends the process by signal {-done.returncode}; a bundle's hashes are checked before"
        )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, "it was opened"


@pytest.mark.parametrize("options", [{"strip_weights": True}, {"refit": True}])
def test_weights_left_out(engine, build, make_mlp, options: dict):
    model = make_mlp("float32", name="model")
    plan, origin = build(model, **options)
    with engine.load(plan, origin=origin) as runner:
        close(runner.infer({"x": images()})["y"], expected(model, images()))


def test_the_inspector_tells_layers(engine, build, make_mlp):
    from engines.tensorrt.layers import read_layers

    plan, origin = build(make_mlp("float16"))
    with engine.load(plan, origin=origin) as runner:
        layers = read_layers(runner.inspect_layers())
    assert layers and any("float16" in layer.types for layer in layers)


def test_the_inspector_tells_kernels(engine, build, make_mlp):
    """In which form, is not known of every release: where it cannot be read, it is said so in one line."""
    model = make_mlp("float16")
    plan, origin = build(model)
    try:
        rows, details = engine.inspect_kernels(plan, model, {"x": images()}, origin=origin)
    except EngineError as error:
        pytest.skip(f"{engine.kind} {origin.version}: {error}")
    assert {"first", "second"} <= {node for row in rows for node in row["nodes"]}
    assert details["raised"] == [] and details["kernels"]["products"].get("float16")
