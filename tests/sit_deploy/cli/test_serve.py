"""`sit-deploy serve` as people start and stop it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sit_deploy.data.image_files import list_images
from sit_deploy.triton import install as installing
from sit_deploy.triton import server
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import CLASSES, Trained
from tests.sit_deploy.triton.conftest import free_ports, installation

__all__ = ["installation"]  # the fixture


def start(cli: CommandLine, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sit_deploy", "serve", *map(str, words)],
        cwd=cli.folder,
        env={**os.environ, "TMPDIR": str(cli.folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def options(installed: server.Installation, ports: server.Ports) -> list[Any]:
    return [
        *("--server-folder", installed.backends.parent, "--threads", 1),
        *("--http-port", ports.http, "--grpc-port", ports.grpc, "--metrics-port", ports.metrics),
    ]


def read_object(stream: Any) -> dict[str, Any]:
    """Read one JSON object from a stream that stays open."""
    text = ""
    for line in stream:
        text += line
        if line == "}\n":
            return json.loads(text)
    raise AssertionError(f"no JSON, but {text!r}")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_line_that_is_printed_works(
    installation: server.Installation, trained: Trained, cli: CommandLine
) -> None:
    image = list_images(trained.images)[0]
    best = cli("predict", trained.bundle, image, "--json").json()[0]["classes"][0]
    process = start(cli, trained.bundle, "--json", *options(installation, free_ports()))
    try:
        told = read_object(process.stdout)
        shutil.copy(image, cli.folder / "photo.jpg")
        done = subprocess.run(["sh", "-c", told["curl"]], cwd=cli.folder, capture_output=True, text=True)
        (output,) = json.loads(done.stdout)["outputs"]
        _, number, name = output["data"][0].split(":", 2)
        assert (int(number), name) == (best["index"], CLASSES[best["index"]])
        for photo in photographs(cli.folder):
            line = told["curl"].replace("photo.jpg", photo.name)
            (expected,) = cli("predict", trained.bundle, photo, "--json").json()
            assert answer_to(line, cli.folder) == expected["classes"][0]["index"], photo
            bare = line.replace("-H 'Content-Type: application/json' ", "")
            assert bare != line and answer_to(bare, cli.folder) == expected["classes"][0]["index"], photo
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and err.endswith("Stopped.\n")
    assert list((cli.folder / "tmp").iterdir()) == []
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", told["http"]))


def photographs(folder: Path) -> list[Path]:
    """A JPEG of 5 MB under a name with spaces, and one of 21 MB, most of it the film that telephones put behind a picture."""
    made = [folder / "IMG 0001 (copy).jpg", folder / "IMG_0002.jpg"]
    random = np.random.default_rng(2100)
    Image.fromarray(random.integers(0, 256, (2100, 2100, 3), dtype=np.uint8)).save(made[0], quality=95)
    assert made[0].stat().st_size > 5e6
    Image.fromarray(random.integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(made[1], quality=95)
    with made[1].open("ab") as file:
        file.write(random.bytes(21_000_000))
    return made


def answer_to(line: str, folder: Path) -> int:
    """Run a shell line that asks for the best classes; returns the number of the first."""
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return int(json.loads(done.stdout)["outputs"][0]["data"][0].split(":")[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_server_that_dies_is_told_of(
    number: signal.Signals, installation: server.Installation, trained: Trained, cli: CommandLine
) -> None:
    process = start(cli, trained.bundle, "--json", *options(installation, free_ports()))
    try:
        told = read_object(process.stdout)
        folder = str(Path(told["log"]).parent)
        found = subprocess.run(["pgrep", "-f", f"tritonserver.*{folder}"], capture_output=True, text=True)
        os.kill(int(found.stdout.split()[0]), number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith(f"Error: Triton stopped: it was killed by {number.name}")
    time.sleep(0.2)
    assert not subprocess.run(["pgrep", "-f", folder], capture_output=True).stdout


@pytest.mark.slow
def test_a_run_that_is_killed_takes_the_server_along(
    installation: server.Installation, trained: Trained, cli: CommandLine
) -> None:
    for _ in range(2):
        process = start(cli, trained.bundle, "--json", *options(installation, free_ports()))
        told = read_object(process.stdout)
        folder = Path(told["log"]).parent
        assert list((cli.folder / "tmp").iterdir()) == [folder]  # and not the one of the run before
        assert folder.stat().st_mode & 0o777 == 0o700
        process.kill()
        process.communicate()
        for _ in range(200):
            if not subprocess.run(["pgrep", "-f", str(folder)], capture_output=True).stdout:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the server is still there")


def test_nothing_to_serve(cli: CommandLine, trained: Trained) -> None:
    assert "Missing argument 'BUNDLE'" in cli("serve", status=2).usage_error()
    assert "is not a bundle" in cli.refuses("serve", "gone")
    (cli.folder / "model.onnx").touch()
    assert "model.onnx is not a bundle: it is a file, and a bundle is a folder" in cli.refuses(
        "serve", "model.onnx"
    )
    assert (
        "no Triton server in nowhere; run `sit-deploy serve --install --server-folder nowhere`"
        in cli.refuses("serve", trained.bundle, "--server-folder", "nowhere")
    )


def test_a_port_that_is_taken(cli: CommandLine, trained: Trained) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert (
            f"port {port} of 127.0.0.1 cannot be used (Address already in use); pass another --http-port"
            in cli.refuses("serve", trained.bundle, "--http-port", port)
        )


@pytest.mark.parametrize(
    ("folder", "missing"),
    [
        ("backends", "no Triton server in"),
        ("backends venv", "lacks .*/venv/bin/python"),
        ("venv", "no Triton server in"),
    ],
)
def test_a_folder_that_is_no_installation_or_half_of_one(
    folder: str, missing: str, cli: CommandLine, trained: Trained
) -> None:
    for name in folder.split():
        (cli.folder / "triton" / name).mkdir(parents=True)
    message = cli.refuses("serve", trained.bundle, "--server-folder", "triton")
    assert re.search(missing, message) and "run `sit-deploy serve --install" in message
    # an installation is not proposed where it would be refused
    assert ("--install --server-folder triton" in message) is (folder == "backends venv")


def test_a_server_as_the_container_has_it(cli: CommandLine) -> None:
    """/opt/tritonserver has folders bin and backends."""
    (cli.folder / "bin").mkdir()
    (cli.folder / "backends").mkdir()
    (cli.folder / "bin/tritonserver").touch(0o755)
    found = server.find_server(cli.folder)
    assert found.executable == cli.folder / "bin/tritonserver" and found.backends is None


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid", "::1", "a" * 300])
def test_a_host_that_is_not_here_is_not_a_port_that_is_taken(
    host: str, cli: CommandLine, trained: Trained
) -> None:
    message = cli.refuses("serve", trained.bundle, "--host", host)
    assert "is no IPv4 address of this machine" in message and "--http-port" not in message


def test_a_python_that_makes_no_environments(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, ["ensurepip"], b"No module named ensurepip")

    monkeypatch.setattr(installing.venv, "create", fail)
    message = cli.refuses("serve", "--install", "--server-folder", "triton")
    assert "No module named ensurepip" in message and "-venv" in message
    assert not (cli.folder / "triton").exists()


def test_an_installation_goes_into_no_other_folder(cli: CommandLine) -> None:
    (cli.folder / "mine").mkdir()
    (cli.folder / "mine/thesis.tex").touch()
    assert "mine has other files in it; name an empty or new one with --server-folder" in cli.refuses(
        "serve", "--install", "--server-folder", "mine"
    )


@pytest.mark.slow
def test_an_installation_that_fails_leaves_nothing(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "WHEEL", "no-such-wheel-of-anyone==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    # installing pip takes most of what an environment takes: ours is as good
    pip, create = pytest.importorskip("pip"), installing.venv.create
    monkeypatch.setattr(installing.venv, "create", lambda folder, with_pip: create(folder))
    monkeypatch.setenv("PYTHONPATH", str(Path(pip.__file__).parents[1]))
    message = cli.refuses("serve", "--install", "--server-folder", "triton")
    assert "no-such-wheel-of-anyone==0.0.0 cannot be installed (ERROR: " in message


def test_an_installation_that_was_killed_is_begun_anew(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cli.folder / "triton"
    (folder / "venv/lib").mkdir(parents=True)
    (folder / "venv/pyvenv.cfg").touch()
    (folder / "venv/half").touch()
    (folder / ".backends.0123456789abcdef.partial").mkdir()
    done: list[str] = []
    monkeypatch.setattr(installing, "_make_environment", lambda place: done.append(place.name))
    monkeypatch.setattr(installing, "_pip", lambda folder, arguments: done.append(arguments[-1]))
    monkeypatch.setattr(installing, "_make_backends", lambda folder: done.append("backends"))
    installing.install_server(folder, lambda *_: None)
    assert done[0] == "venv" and done[-1] == "backends" and not (folder / "venv/half").exists()


@pytest.mark.slow
def test_an_installation_that_is_there_is_left_alone(
    installation: server.Installation, cli: CommandLine
) -> None:
    before = installation.backends.stat().st_mtime_ns
    assert (
        "Triton is installed in"
        in cli("serve", "--install", "--server-folder", installation.backends.parent).out
    )
    assert installation.backends.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_library_that_is_missing_is_named(
    installation: server.Installation, monkeypatch: pytest.MonkeyPatch, cli: CommandLine, trained: Trained
) -> None:
    """The server would wait for ever for a backend process that cannot start."""
    listing = "\tlibpython3.11.so.1.0 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x0)\n"
    done = subprocess.CompletedProcess([], 0, listing, "")
    monkeypatch.setattr(server.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(
        server.InputError, match=r"lacks libpython3\.11\.so\.1\.0; .*apt-get install libpython3\.11\)"
    ):
        server.find_server(installation.backends.parent)
    other = subprocess.CompletedProcess([], 0, "\tlibarchive.so.13 => not found\n", "")
    monkeypatch.setattr(server.subprocess, "run", lambda *_, **__: other)
    with pytest.raises(
        server.InputError, match=r"Triton lacks libarchive\.so\.13; install it, or put"
    ) as caught:
        server.find_server(installation.backends.parent)
    assert "python" not in str(caught.value)  # whose package would not help
