"""check.py: what it prints, writes and answers; in this process, and in an environment of its requirements alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sit_deploy.hashes import digest
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.report.check_record import read_check
from sit_deploy.validation.report import ReportRequest, write_report
from tests.helpers import bare_python
from tests.helpers.bundles import load_manifest, seal_again
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import Trained
from tests.sit_deploy.portable.conftest import Run, on_fake_tensorrt


def test_a_good_folder(run: Run, nano_fp32: Path, folder_of: Callable[..., Path]) -> None:
    status, out, err = run(folder_of(nano_fp32))
    assert (status, err) == (0, "")
    assert re.search(r"nano-fp32 +fp32 +onnxruntime [\d.]+ +good \d\.\de-\d\d of 0.0001 .* \d+\n", out)
    assert "check.json: take it to sit-deploy report" in out
    (bundle,) = read_check(Path("check.json"))["bundles"]
    assert bundle["golden"]["passed"] and len(bundle["layers"]["layers"]) > 50 and bundle["latencies"] == []
    text = Path("check.json").read_text()
    assert str(Path.cwd().parent) not in text and os.uname().nodename not in text


@pytest.mark.slow
def test_report_is_named_where_it_takes_a_bundle(
    run: Run, nano_embeddings: Path, folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    """And it does take what was measured of one that gives embeddings; of patches alone there is no report."""
    build(BuildRequest("sit_nano", tmp_path / "patches", engine="onnxruntime", outputs=("patches",)))
    status, out, _ = run(folder_of(tmp_path / "patches"))
    assert status == 0 and "sit-deploy report" not in out and out.endswith("check.json has all of it\n")
    status, out, _ = run(folder_of(nano_embeddings, tmp_path / "patches", name="both"), "--force")
    assert status == 0 and "check.json: take it to sit-deploy report" in out
    request = ReportRequest(
        (nano_embeddings,), (tmp_path / "page.md",), rounds=0, measured=(Path("check.json"),)
    )
    (row,) = write_report(request).bundles[0].evidence.elsewhere
    assert row.bundle.golden.passed


@pytest.mark.slow
def test_other_logits_than_the_reference(
    run: Run, nano_fp32: Path, copy_of: Callable[..., Path], folder_of: Callable[..., Path]
) -> None:
    wrong = copy_of(nano_fp32, "wrong")
    with np.load(wrong / "golden.npz") as golden:
        images, logits = golden["images"], golden["logits"]
    np.savez(wrong / "golden.npz", images=images, logits=logits[:, ::-1])
    seal_again(wrong)
    folder = folder_of(wrong, nano_fp32)
    status, out, err = run(folder)
    assert status == 1 and "MISMATCH" in out and "good" in out
    assert err == (
        "Error: wrong: the golden outputs are not the reference's on this machine; do not serve it here\n"
    )
    assert [b["golden"]["passed"] for b in read_check(Path("check.json"))["bundles"]] == [True, False]
    assert run(folder, "nano-fp32", "-o", "one.json")[0] == 0
    assert [b["name"] for b in read_check(Path("one.json"))["bundles"]] == ["nano-fp32"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "there is no bundle gone in .*bundles; there is nano-fp32"),
        (
            ["-o", "no/where.json"],
            "cannot write no/where.json: .* is no folder, or cannot be written; choose another with -o",
        ),
        (
            ["-o", "taken.json"],
            "output taken.json exists; pass --force to replace it, or choose another with -o",
        ),
        (["-o", "."], "output . is no file; choose another with -o"),
        (["--rounds", "-1"], "'-1' is no whole number from 0"),
        (["--rounds", "x"], "'x' is no whole number"),
        (["--seconds", "nan"], "'nan' is no number of seconds above 0"),
        (["--engine", "tensorrt"], "--engine says what --build builds with; pass both"),
        (["--nonsense"], "unrecognized arguments: --nonsense; see --help"),
        (["--device", "tpu"], "'tpu' is no device; use cpu, cuda or cuda:N"),
        (["--device", "cuda:x"], "'cuda:x' is no device; use cpu, cuda or cuda:N"),
        (["--threads", "4000"], "threads must be at most .* on this machine, got 4000"),
    ],
)
def test_bad_usage(
    words: list[str], message: str, run: Run, nano_fp32: Path, folder_of: Callable[..., Path]
) -> None:
    folder = folder_of(nano_fp32)
    Path("taken.json").write_text("mine")
    status, _, err = run(folder, *words)
    assert status == 2 and re.fullmatch(f"Error: .*{message}.*\n", err), err
    assert [path.name for path in Path().iterdir()] == ["taken.json"] and Path(
        "taken.json"
    ).read_text() == "mine"


def test_replacing_and_an_empty_folder(run: Run, nano_fp32: Path, folder_of: Callable[..., Path]) -> None:
    folder = folder_of(nano_fp32)
    Path("check.json").write_text("old")
    assert run(folder, "--force")[0] == 0 and read_check(Path("check.json"))
    (folder / "bundles/nano-fp32").rename(folder / "away")
    status, _, err = run(folder, "--force")
    assert status == 2 and "has no bundle in it; write the folder again" in err


def test_what_is_written_names_no_place(
    run: Run, nano_fp32: Path, copy_of: Callable[..., Path], folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    damaged = copy_of(nano_fp32, "damaged")
    (damaged / "engine.onnx").write_bytes(b"no graph")
    seal_again(damaged)
    status, out, err = run(folder_of(nano_fp32, damaged))
    assert (
        status == 2 and "damaged: bundles/damaged/engine.onnx is not an engine ONNX Runtime can load" in err
    )
    assert str(tmp_path) not in Path("check.json").read_text() + out


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_place_that_cannot_be_written(run: Run, nano_fp32: Path, folder_of: Callable[..., Path]) -> None:
    folder = folder_of(nano_fp32)
    Path("shut").mkdir(mode=0o500)
    assert run(folder, "-o", "shut/check.json")[0] == 2


def test_one_bundle_that_does_not_run(
    run: Run, nano_fp32: Path, tmp_path: Path, folder_of: Callable[..., Path]
) -> None:
    gpu = on_fake_tensorrt(nano_fp32, tmp_path / "gpu", "tensorrt-rtx-1.7.1")
    folder = folder_of(nano_fp32, gpu)
    status, out, err = run(folder)
    assert status == 2 and "did not run" in out
    assert err.startswith("Error: gpu")
    rows = {bundle["name"]: bundle for bundle in read_check(Path("check.json"))["bundles"]}
    assert rows["gpu"]["refused"] and rows["gpu"]["golden"] is None and rows["nano-fp32"]["golden"]["passed"]


def test_no_bundle_that_runs(
    run: Run, nano_fp32: Path, tmp_path: Path, folder_of: Callable[..., Path]
) -> None:
    """The JSON says so too, and each bundle why, in a line of its own."""
    names = ("gpu-fp16", "gpu-int8")
    release = "tensorrt-rtx-1.7.1"
    folder = folder_of(*(on_fake_tensorrt(nano_fp32, tmp_path / name, release, why=name) for name in names))
    status, out, err = run(folder)
    assert status == 2 and out.count("did not run:") == 2 and "check.json: take it to" in out
    lines = err.splitlines()
    assert [line.split()[:2] for line in lines] == [["Error:", name] for name in names]
    fields = read_check(Path("check.json"))
    assert [f"Error: {row['refused']}" for row in fields["bundles"]] == lines
    assert fields["gpu"] is None and not any(row["latencies"] for row in fields["bundles"])


def test_ctrl_c_writes_nothing(
    run: Run, nano_fp32: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    folder = folder_of(nano_fp32)
    monkeypatch.setattr("sit_deploy.portable.check.measure", interrupt)
    assert run(folder) == (2, "", "Error: interrupted; nothing was written\n")
    assert list(Path().iterdir()) == []


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_that_meets_a_destructor_writes_nothing_too(
    run: Run, nano_fp32: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python prints what a destructor raises, and goes on."""

    class Gone:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def work(*_: Any) -> Any:
        gone = Gone()
        del gone
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            time.sleep(0.01)

    folder = folder_of(nano_fp32)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: pytest.fail("Python printed it"))
    monkeypatch.setattr("sit_deploy.portable.check.measure", work)
    assert run(folder) == (2, "", "Error: interrupted; nothing was written\n")
    assert list(Path().iterdir()) == []


def test_ctrl_c_while_numpy_is_imported(nano_fp32: Path, folder_of: Callable[..., Path]) -> None:
    folder = folder_of(nano_fp32)
    (folder / "numpy.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run([sys.executable, folder / "check.py"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "Error: interrupted; nothing was written\n")


def test_a_library_that_is_of_another_python(nano_fp32: Path, folder_of: Callable[..., Path]) -> None:
    folder = folder_of(nano_fp32)
    (folder / "numpy.py").write_text("raise ImportError('IMPORTANT:\\n\\nplease read this')\n")
    done = subprocess.run([sys.executable, folder / "check.py"], capture_output=True, text=True)
    reason = "what it needs cannot be imported (IMPORTANT: please read this)"
    said = f"Error: {reason}; run `pip install -r requirements.txt` in {folder}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def _python(python: Path, *words: object, cwd: Path, **environment: str) -> Any:
    """Run a Python that sees nothing of this one's modules."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [python, *map(str, words)], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True
    )


@pytest.fixture
def moved(folder_of: Callable[..., Path], nano_fp32: Path, trained_openvino: Path) -> Path:
    """A folder for ONNX Runtime and OpenVINO, moved to a place with a space and a name of other letters."""
    folder = folder_of(nano_fp32, trained_openvino)
    return folder.rename(folder.parent / "mövèd here")


@pytest.mark.slow
def test_in_an_environment_of_its_requirements_alone(
    moved: Path, trained: Trained, tmp_path: Path, cli: CommandLine
) -> None:
    pytest.importorskip("openvino")
    lines = (moved / "requirements.txt").read_text().splitlines()
    python = bare_python.make(tmp_path / "venv", lines)
    asked = "import importlib.util as u; print([n for n in ('torch', 'timm', 'sit_deploy', 'click', 'msgspec', 'onnx') if u.find_spec(n)])"
    assert _python(python, "-c", asked, cwd=moved).stdout == "[]\n"
    done = _python(python, moved / "check.py", "--rounds", 2, "--seconds", 0.02, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    fields = read_check(tmp_path / "check.json")
    rows = {bundle["name"]: bundle for bundle in fields["bundles"]}
    assert {name: [timed["batch_size"] for timed in row["latencies"]] for name, row in rows.items()} == {
        "trained-openvino": [2, 3, 4],
        "nano-fp32": [1],
    }
    assert all(row["golden"]["passed"] and row["layers"]["layers"] for row in rows.values())
    assert fields["versions"]["onnx"] is None and fields["gpu"] is None
    # the lines of its README: the figures are those of the command here
    readme = (moved / "README.md").read_text()
    program = textwrap.dedent(
        re.search(r"\n\n((?:    .*\n|\n)*    import sit_bundle\n(?:    .*\n|\n)*)", readme)[1]
    )
    pictures = sorted(trained.images.rglob("*.png"))[:2]
    program = program.replace('["cat.jpg", "dog.jpg"]', repr([str(picture) for picture in pictures]))
    said = _python(python, "-c", program, cwd=moved)
    rows = [
        row["classes"][0] for row in cli("predict", moved / "bundles/nano-fp32", *pictures, "--json").json()
    ]
    expected = "".join(f"{best['name']} {best['probability']} {best['index']}\n" for best in rows)
    assert (said.returncode, said.stdout) == (0, expected), said.stderr
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_on_the_fake_gpu_in_such_an_environment(
    nano_fp32: Path, nano_rtx: Path, tmp_path: Path, folder_of: Callable[..., Path]
) -> None:
    release = "tensorrt-rtx-1.7.1"
    bundles = [on_fake_tensorrt(path, tmp_path / path.name, release) for path in (nano_fp32, nano_rtx)]
    folder = folder_of(*bundles)
    assert "tensorrt-rtx==1.7.1" in (folder / "requirements.txt").read_text()
    python = bare_python.make(
        tmp_path / "venv", ["numpy", "pillow", "onnxruntime"]
    )  # which the fake runs graphs on
    nodes = json.loads((folder / "folder.json").read_text())["bundles"][load_manifest(bundles[0])["digest"]][
        "nodes"
    ]
    tensor = {"Name": "t", "Dimensions": [1, 64], "Format/Datatype": "Row major linear FP16 format"}
    layer = {"Name": "head_myl0_1", "LayerType": "gemm", "Inputs": [tensor, tensor], "Outputs": [tensor]}
    layer["Metadata"] = f"[ONNX Layer: {nodes['products'][-1]}]"
    told = json.dumps({"Layers": [layer], "Bindings": []})
    gpu = bare_python.add_fake_gpu(tmp_path / "site", release, more=f"TRT.inspector = {told!r}")
    done = _python(python, folder / "check.py", "--rounds", 3, "--seconds", 0.02, cwd=tmp_path, **gpu)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
    assert "Fake GPU (sm89), driver 580.65, SM clock 1500 to 1500 MHz" in done.stdout
    assert "nano-rtx over nano-fp32 at batch 1: " in done.stdout
    fields = read_check(tmp_path / "check.json")
    assert fields["gpu"] == {
        "name": "Fake GPU",
        "compute_capability": "sm89",
        "number": 0,
        "driver": "580.65",
    }
    assert len(fields["clocks"]) == 5  # before, at the start of each round, at the end
    for row in fields["bundles"]:
        assert row["golden"]["passed"] and row["latencies"][0]["gpu"]["p50_ms"] > 0
        assert row["layers"]["kept"] is not None
        assert row["layers"]["census"]["kernels"]["products"] == {"float16": 1}  # told without onnx
    # another GPU than it was built for: which, and how to build it here
    other = bare_python.add_fake_gpu(tmp_path / "other", release, (9, 0), more="TRT.validity = 2")
    refused = _python(python, folder / "check.py", "--rounds", 0, "-o", "no.json", cwd=tmp_path, **other)
    assert refused.returncode == 2
    rows = read_check(tmp_path / "no.json")["bundles"]
    said = [line for line in refused.stderr.splitlines() if line.startswith("Error: ")]
    assert said == [f"Error: {row['refused']}" for row in rows]
    assert [row["name"] for row in rows] == ["nano-fp32", "nano-rtx"] and all(
        "sm90" in row["refused"] for row in rows
    )


@pytest.mark.slow
def test_without_numpy_and_with_a_runtime_missing(
    nano_fp32: Path, tmp_path: Path, folder_of: Callable[..., Path]
) -> None:
    folder = folder_of(nano_fp32)
    bare = bare_python.make(tmp_path / "bare", [])
    done = _python(bare, folder / "check.py", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == f"Error: numpy is not installed; run `pip install -r requirements.txt` in {folder}\n"
    )
    half = bare_python.make(tmp_path / "half", ["numpy", "pillow"])
    done = _python(half, folder / "check.py", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == (
        "Error: nano-fp32: ONNX Runtime is not installed; run `pip install -r requirements.txt` of its folder\n"
    )
    assert read_check(tmp_path / "check.json")["versions"]["onnxruntime"] is None


@pytest.mark.slow
def test_another_package_called_engines_is_named(
    nano_fp32: Path, tmp_path: Path, folder_of: Callable[..., Path]
) -> None:
    folder = folder_of(nano_fp32)
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines/__init__.py").write_text("")
    program = f"import sys; sys.path.append({str(folder)!r}); import sit_bundle"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "is found as engines, and sit_bundle needs the one beside it" in done.stderr


def test_the_digest_is_of_the_rest(run: Run, nano_fp32: Path, folder_of: Callable[..., Path]) -> None:
    run(folder_of(nano_fp32))
    fields = json.loads(Path("check.json").read_text())
    assert fields["digest"] == digest(fields)
