"""The script for a GPU machine, up to the lines that need the GPU: time limits, crashes, and reasons for what is not run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.gpu_machine import jobs, steps
from benchmarks.gpu_machine.session import Session
from sit_deploy.bundle import load_bundle

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------------------------------------------ the command


def test_what_the_machine_is(script: Callable, tmp_path: Path) -> None:
    done = script("--limit", "60", "facts", "keep")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(results) == ["facts", "keep"]
    assert results["facts"]["cpus"] == os.cpu_count() and not {"torch", "onnx"} & set(
        results["facts"]["missing"]
    )
    text = (tmp_path / "out" / "result.md").read_text()
    assert text.startswith("## facts\n- cpus: ") and text in done.stdout
    assert "machine: " in (tmp_path / "out" / "log.txt").read_text()


def test_steps_whose_pack_is_not_there_say_so(script: Callable, tmp_path: Path) -> None:
    done = script("smoke", "tests", "trt86", "ortcuda")
    assert done.returncode == 1
    results = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [(step, result["failed"].split(";")[0]) for step, result in results.items()] == [
        ("smoke", "the pack rtx is not here"),
        ("tests", "the pack rtx is not here"),
        ("trt86", "the pack trt86 is not here"),
        ("ortcuda", "the pack ortcuda is not here"),
    ]


def test_wrong_commands_say_what_there_is(script: Callable, tmp_path: Path) -> None:
    assert script().returncode == 2
    done = script("facts", "dance")
    assert done.returncode == 2 and done.stderr.startswith("error: no step dance\n")
    assert all(f"    {step} " in done.stderr for step in steps.STEPS)
    elsewhere = script("facts", cwd=tmp_path)
    assert elsewhere.returncode == 2 and "project's root" in elsewhere.stderr
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------- commands


@pytest.mark.slow
def test_a_command_whose_time_is_up_may_write_what_it_has(session: Session) -> None:
    program = "import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: print('what there is')"
    assert session.run([sys.executable, "-uc", program], 2) == (None, "what there is\n")
    assert "out of time" in (session.out / "log.txt").read_text()


def test_an_answer_is_the_last_object_and_a_silence_is_told_by_its_end(session: Session) -> None:
    def ask(program: str) -> dict:
        return session.ask([sys.executable, "-c", program], 30, dict(os.environ))

    assert ask("print('{\"a\": 1}'); print('{\"b\": 2}'); print('a warning')") == {"b": 2}
    assert ask("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)") == {
        "failed": "died of SIGSEGV: no output"
    }
    assert ask("raise SystemExit('no such thing')") == {"failed": "status 1: no such thing"}


@pytest.mark.slow
def test_a_test_that_kills_its_process_is_left_out(session: Session, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    lines = [
        "import os, signal",
        "def test_good(): pass",
        "def test_bad(): os.kill(os.getpid(), signal.SIGKILL)",
    ]
    lines += ["def test_wrong(): assert False"]
    (tmp_path / "tests" / "test_three.py").write_text("\n".join(lines))
    there = Session(session.kit, tmp_path, session.home, session.out, session.deadline)
    words = ["tests/test_three.py", "-v", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", tmp_path]
    bare = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = there.pytest(sys.executable, words, "three", 60, bare)
    assert result["crashed"] == ["tests/test_three.py::test_bad"]
    assert result["status"] == 1 and result["counts"].startswith("1 failed, 1 passed, 1 deselected")
    assert len(result["failures"]) == 1 and (session.out / "tests-three.xml").is_file()


# ------------------------------------------------------------------------------------------------------------- jobs


def test_a_world_of_one_asks_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in world.items():  # as the launcher sets them
        monkeypatch.setenv(name, value)
    assert jobs.world("gloo") == {"works": True}


@pytest.mark.slow
def test_the_launcher_starts_a_job_and_its_answer_comes_back(session: Session) -> None:
    *launcher, job, backend = steps.world_of_one("nccl")
    assert (job, backend) == ("world", "nccl")
    quicker = ["jpegs", session.home, "1", "1"]
    assert session.ask([*launcher, *quicker], 120, session.environment()) == {"images": 2}


def test_pictures_to_train_on(tmp_path: Path) -> None:
    assert jobs.jpegs(str(tmp_path), pictures="2", copies="3") == {"images": 2 * 3 + 2}
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["class0", "class1"]


def test_where_pytorch_finds_no_gpu_its_jobs_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for words in (["pytorch", "sit_nano", "1"], ["world", "nccl"]):
        jobs.main(words)
        assert json.loads(capsys.readouterr().out) == {"failed": "PyTorch finds no GPU"}


def test_a_job_that_fails_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    jobs.main(["probe", "tensorrt", str(tmp_path)])
    result = json.loads(capsys.readouterr().out)
    assert result["failed"].startswith("FileNotFoundError: ")


@pytest.mark.parametrize("target", ["default", "current"])
def test_one_layer_on_a_fake_gpu(target: str, fake_gpu: Callable[[str], None], tmp_path: Path) -> None:
    fake_gpu("tensorrt-rtx-1.7.1")
    result = jobs.one_layer(target, str(tmp_path))
    assert result["runs"] and result["notes"] == [] and "failed" not in result


def test_a_probe_on_a_fake_gpu(
    fake_gpu: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_gpu("tensorrt-10.16.1")
    monkeypatch.setattr(jobs, "SECONDS", 0.05)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    jobs.one_layer_graph(bundle / "model.onnx")
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    y = ort.InferenceSession(bundle / "model.onnx").run(None, {"x": x})[0]
    np.savez(bundle / "golden.npz", images=x, logits=y)
    (bundle / "manifest.json").write_text('{"engine": {"kind": "onnxruntime"}, "batch": {"size": 2}}')
    result = jobs.probe("tensorrt", str(bundle))
    for label in ("graph", "plain"):
        assert result[f"{label}_error"] == 0 and result[f"{label}_ms"] > 0 and result[f"{label}_notes"] == []
    assert (tmp_path / "bundle-tensorrt.plan").is_file()
    assert (result["graph_captured"], result["plain_captured"]) == (1, 0)
    assert result["precision"] == {"kept": 0, "raised": (), "unknown": 0}  # a graph in float32
    assert "device_ms" in result or "device_failed" in result


def test_a_bundle_with_another_engine_is_a_whole_one(nano_fp32: Path, tmp_path: Path) -> None:
    source = tmp_path / "nano"
    shutil.copytree(nano_fp32, source)
    folder = Path(jobs.bundle("onnxruntime", str(source))["folder"])
    manifest = load_bundle(folder).manifest
    assert folder.name == "nano-onnxruntime" and manifest.engine.file == "engine.plan"
    assert manifest.model == load_bundle(nano_fp32).manifest.model


@pytest.mark.slow
def test_without_a_gpu_the_table_is_refused_in_one_line(session: Session) -> None:
    if jobs.pytorch("sit_nano", "1").get("failed") is None:
        pytest.skip("there is a GPU")
    assert steps.bench(session) == {
        "failed": "Error: PyTorch finds no GPU; pass --device cpu to try the script"
    }


def test_the_files_of_the_gpu_tests_are_where_the_steps_look() -> None:
    for path in (steps.ENGINE_TESTS, steps.MODEL_TESTS, "benchmarks/gpu.py", "benchmarks/training_step.py"):
        assert (ROOT / path).is_file()


@pytest.mark.slow
def test_the_engines_tests_start_where_pytorch_is_not() -> None:
    # as in a packed Python, which has none of what a model needs; one test runs, since fixtures of the session ask for things too
    program = f"""
import sys
absent = "torch timm torchvision onnxscript safetensors scipy sklearn matplotlib jinja2 msgspec filelock hypothesis openvino".split()
sys.modules.update(dict.fromkeys([*absent, "tensorrt_rtx"]))
import pytest
quiet = "-q -p no:cacheprovider -p no:xdist -p no:hypothesispytest".split()
status = pytest.main([*quiet, "--collect-only", {steps.ENGINE_TESTS!r}])
sys.exit(status or pytest.main([*quiet, "tests/engines/tensorrt/test_load.py", "-k", "out_of_memory and 8.6"]))
"""
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_runs_what_the_graph_says" in done.stdout and "1 passed" in done.stdout
