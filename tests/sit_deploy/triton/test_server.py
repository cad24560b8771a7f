"""The real server: golden outputs, batching, refusals, labels, image files, and two thousand requests."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.data.image_files import list_images
from sit_deploy.data.synthetic import synthetic_images
from sit_deploy.inference import load
from sit_deploy.measure.parity import compare
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.precisions import TOLERANCE
from sit_deploy.triton import server
from sit_deploy.triton.repository import write_repository
from tests.helpers.shared import shared
from tests.sit_deploy.conftest import CLASSES, Trained
from tests.sit_deploy.triton.conftest import Running, encoded, free_ports, serving

PROTOCOLS = ["http", "grpc"]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small sit_nano of open batch that takes pixels: the smallest requests there are."""

    def make(path: Path) -> None:
        size = {"image_size": 48, "num_classes": 5}
        build(
            BuildRequest(
                "sit_nano", path, engine="onnxruntime", dynamic_batch=(1, 4, 8), input="uint8", **size
            )
        )

    return load_bundle(shared(tmp_path_factory, "served-pixels", make))


@pytest.fixture(scope="module")
def triton(
    trained: Trained,
    nano_rtx: Path,
    nano_embeddings: Path,
    pixels: Bundle,
    run_server: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    repository = tmp_path_factory.mktemp("triton") / "models"
    write_repository(
        [
            (load_bundle(trained.bundle), serving("net", ensemble=True, max_queue_delay=50_000)),
            (load_bundle(nano_rtx), serving("half")),
            (pixels, serving("pixels")),
            (load_bundle(nano_embeddings), serving("embed", ensemble=True)),
        ],
        repository,
    )
    with run_server(repository) as started:
        yield started


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", ["net", "half", "pixels"])
def test_golden_outputs(
    model: str, protocol: str, triton: Running, trained: Trained, nano_rtx: Path, pixels: Bundle
) -> None:
    """Of a float bundle, of an FP16 one built for TensorRT, and of one that takes pixels."""
    bundle = {"net": load_bundle(trained.bundle), "half": load_bundle(nano_rtx), "pixels": pixels}[model]
    images, reference = bundle.golden()
    with triton.client(protocol) as client:
        logits = np.concatenate([triton.infer(client, model, image[None]) for image in images])
    hop = compare("Triton", logits, reference, reference, TOLERANCE[bundle.manifest.precision])
    assert hop.passed, hop


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("output", ["features", "patches"])
def test_outputs_by_name(
    output: str, protocol: str, triton: Running, nano_embeddings: Path, tmp_path: Path
) -> None:
    """Each alone, of a single tensor (which is filled up), of more than the engine takes, and of a picture."""
    bundle = load_bundle(nano_embeddings)
    images, values = bundle.golden_outputs()
    picture = tmp_path / "picture.png"
    synthetic_images(1)[0].save(picture)
    data = np.array([[picture.read_bytes()]], object)
    with load(bundle) as embed, triton.client(protocol) as client:
        for given in (images[:1], images):
            found = triton.infer(client, "embed", given, output=output)
            np.testing.assert_allclose(found, values[output][: len(given)], atol=1e-4)
        found = triton.infer(client, "embed_images", data, name="image", output=output)
        np.testing.assert_allclose(found, embed.all_outputs([picture])[output], atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_batch_is_what_the_engine_gives(size: int, triton: Running, trained: Trained) -> None:
    """The engine takes batches of 2 to 4; a single image is filled up."""
    images, _ = load_bundle(trained.bundle).golden()
    with load(trained.bundle) as classify, triton.client("grpc") as client:
        assert np.allclose(
            triton.infer(client, "net", images[:size]), classify.logits(images[:size]), atol=1e-5
        )


def statistics(client: Any, model: str) -> Any:
    return client.get_inference_statistics(model, as_json=True)["model_stats"][0]


def test_concurrent_requests_are_batched_and_not_mixed_up(triton: Running, trained: Trained) -> None:
    images, _ = load_bundle(trained.bundle).golden()
    with load(trained.bundle) as classify:
        expected = classify.logits(images)
    with triton.client("grpc") as client:
        before = statistics(client, "net")

        def one(index: int) -> np.ndarray:
            return triton.infer(client, "net", images[index % 4 : index % 4 + 1])

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(one, range(64)))
        after = statistics(client, "net")
    for index, answer in enumerate(answers):
        assert np.allclose(answer[0], expected[index % 4], atol=1e-5)
    requests = int(after["inference_count"]) - int(before["inference_count"])
    runs = int(after["execution_count"]) - int(before["execution_count"])
    assert requests == 64
    assert runs <= 48, f"{requests} requests took {runs} runs"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 3, 112, 111), np.float32), "unexpected shape"),
        (np.zeros((1, 112, 112, 3), np.float32), "unexpected shape"),
        (np.zeros((5, 3, 112, 112), np.float32), "batch-size must be <= 4|batch size"),
        (np.zeros((1, 3, 112, 112), np.uint8), "data-type|data type"),
    ],
)
def test_what_does_not_fit_is_the_clients_fault(
    array: np.ndarray, message: str, protocol: str, triton: Running
) -> None:
    with triton.client(protocol) as client:
        with pytest.raises(InferenceServerException, match=message) as caught:
            triton.infer(client, "net", array)
        assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
        assert client.is_server_ready()


def test_class_names_come_back(triton: Running, trained: Trained) -> None:
    bundle = load_bundle(trained.bundle)
    images, logits = bundle.golden()
    with triton.client("http") as client:
        rows = triton.infer(client, "net", images, classes=3)
    for row, scores in zip(rows, logits, strict=True):
        for text, index in zip(row, np.argsort(-scores)[:3], strict=True):
            value, number, name = text.decode().split(":", 2)
            assert (int(number), name) == (index, CLASSES[index])
            assert float(value) == pytest.approx(scores[index], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_image_files_give_what_predict_gives(protocol: str, triton: Running, trained: Trained) -> None:
    files = list_images(trained.images)[:4]
    jpeg = io.BytesIO()
    with Image.open(files[0]) as image:
        image.resize((301, 200)).save(jpeg, "jpeg")
    (Path(triton.log).parent / "other.jpg").write_bytes(jpeg.getvalue())
    files[0] = triton.log.parent / "other.jpg"  # another format and another size in the same request
    with load(trained.bundle) as classify, triton.client(protocol) as client:
        given = triton.infer(client, "net_images", encoded(*(f.read_bytes() for f in files)), "image")
        assert np.allclose(given, classify(files), atol=1e-5)
        text = base64.b64encode(files[0].read_bytes())
        assert np.allclose(triton.infer(client, "net_images", encoded(text), "image"), given[:1], atol=1e-5)


@pytest.mark.parametrize(
    "data", [b"no image", b"", b"\x89PNG\r\n\x1a\n cut off", base64.b64encode(b"no image")]
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_cannot_be_decoded_fails_alone(
    protocol: str, data: bytes, triton: Running, trained: Trained
) -> None:
    good = list_images(trained.images)[0].read_bytes()
    with triton.client(protocol) as client:
        with pytest.raises(InferenceServerException, match="image") as caught:
            triton.infer(client, "net_images", encoded(good, data), "image")
        assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
        assert triton.infer(client, "net_images", encoded(good), "image").shape == (1, len(CLASSES))


def test_of_requests_that_came_together_the_bad_ones_fail(triton: Running, trained: Trained) -> None:
    files = list_images(trained.images)[:3]
    with load(trained.bundle) as classify:
        expected = classify(files)

    def ask(number: int) -> float | str:
        with triton.client("grpc") as client:
            try:
                data = b"no image" if number % 4 == 3 else files[number % 4].read_bytes()
                given = triton.infer(client, "net_images", encoded(data), "image")
            except InferenceServerException as error:
                return str(error)
            return float(np.abs(given - expected[number % 4]).max())

    with ThreadPoolExecutor(16) as pool:
        for number, answer in enumerate(pool.map(ask, range(32))):
            if number % 4 == 3:
                assert isinstance(answer, str) and "not an image" in answer
            else:
                assert isinstance(answer, float) and answer < 1e-4, answer


def memory(process: Any) -> int:
    """Resident bytes of a process and all below it that are its own."""
    pids, total = [process.pid], 0
    while pids:
        pid = pids.pop()
        children = Path(f"/proc/{pid}/task/{pid}/children")
        pids += [int(child) for child in children.read_text().split()]
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                total += int(line.split()[1]) << 10
    return total


def test_two_thousand_requests_lose_none_and_take_no_memory(triton: Running, pixels: Bundle) -> None:
    images, _ = pixels.golden()
    with load(pixels) as classify:
        expected = classify.logits(images)
    with triton.client("grpc") as client:
        before = statistics(client, "pixels")["inference_stats"]

        def ask(count: int) -> int:
            wrong = 0
            for index in range(count):
                answer = triton.infer(client, "pixels", images[index % 4 : index % 4 + 1])
                wrong += not np.allclose(answer[0], expected[index % 4], atol=1e-5)
            return wrong

        def send(each: int) -> None:
            with ThreadPoolExecutor(4) as pool:
                assert sum(pool.map(ask, [each] * 4)) == 0

        send(125)
        settled = memory(triton.process)
        send(375)
        grown = memory(triton.process) - settled
        after = statistics(client, "pixels")["inference_stats"]
    assert int(after["success"]["count"]) - int(before["success"]["count"]) == 2000
    assert int(after.get("fail", {}).get("count", 0)) == 0
    # the pixels of each, 7 kB, would add up to more than three times that
    assert grown < 3 << 20, f"{grown / 1e6:.1f} MB more after 1500 requests"


def test_ports_that_cannot_be_used(triton: Running) -> None:
    other = free_ports()
    with pytest.raises(
        server.InputError,
        match=rf"port {triton.ports.http} of 127.0.0.1 cannot be used .* pass another --http-port",
    ):
        server.Ports(triton.ports.http, other.grpc, other.metrics).check()
    with pytest.raises(server.InputError, match="the ports must differ"):
        server.Ports(9000, 9000, 9002).check()


def test_nobody_outside_is_answered(triton: Running) -> None:
    """Every socket of the server is bound to this machine's own interface."""
    listening = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        address, _, port = local.partition(":")
        if state == "0A" and int(port, 16) in (triton.ports.http, triton.ports.grpc, triton.ports.metrics):
            listening.append(address)
    assert listening and set(listening) == {"0100007F"}  # 127.0.0.1, little-endian


def test_a_host_that_is_no_address() -> None:
    with pytest.raises(server.InputError, match=r"--host 'nowhere\.invalid' is no IPv4 address"):
        server.Ports(
            *(getattr(free_ports(), n) for n in ("http", "grpc", "metrics")), "nowhere.invalid"
        ).check()


def test_the_client_and_the_questions_of_the_page(triton: Running, trained: Trained, tmp_path: Path) -> None:
    """docs/serving.md: client.py as it stands there, and every address that its table asks."""
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    (client,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "tritonclient" in code]
    (tmp_path / "client.py").write_text(client)
    pictures = list_images(trained.images)[:2]
    command = [sys.executable, "client.py", "net_images", f"localhost:{triton.ports.http}", *pictures]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 10 and all(str(picture) in done.stdout for picture in pictures)
    with load(load_bundle(trained.bundle)) as classify:
        best = CLASSES[int(classify(pictures[:1])[0].argmax())]
    assert lines[0].endswith(f":{best}")

    asked = re.findall(r"`curl (-f |-X POST )?localhost:(8000|8002)(/\S+?)`", page)
    assert len(asked) == 8
    for how, port, address in asked:
        place = triton.ports.http if port == "8000" else triton.ports.metrics
        request = urllib.request.Request(
            f"http://localhost:{place}{address.replace('sit_s_fp16', 'half')}",
            method="POST" if "POST" in how else "GET",
        )
        if "POST" in how:  # this server was not started to be changed, and knows what it is asked
            with pytest.raises(urllib.error.HTTPError, match=r"400|503") as refused:
                urllib.request.urlopen(request)
            assert "explicit model load / unload is not allowed" in refused.value.read().decode()
        else:
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 200
