"""The table of containers, in the module and on the page, and the files to begin with."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sit_deploy.triton.containers import CONTAINERS, READS, SUPPORT_MATRIX, image_for, lowest_for_graph

ROOT = Path(__file__).parents[3]
FILES = ROOT / "docs" / "containers"
PAGE = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
RELEASES = [each.release for each in CONTAINERS]


def table() -> str:
    """What the page has between its marks."""
    lines = [
        "| release | Triton | TensorRT | ONNX Runtime | reads operator set, IR | CUDA | driver from |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in reversed(CONTAINERS):
        reads = READS[each.onnxruntime.rpartition(".")[0]] if each.onnxruntime else None
        cells = [each.triton, each.tensorrt, each.onnxruntime, reads and f"{reads[0]}, {reads[1]}", each.cuda]
        lines.append(
            " | ".join([f"| {each.release}", *(cell or "—" for cell in cells), f"{each.driver or '—'} |"])
        )
    return "\n".join(lines)


def test_the_page_has_the_table_of_the_module() -> None:
    shown = PAGE.partition("<!-- containers -->\n")[2].partition("\n<!-- /containers -->")[0]
    assert shown == table()
    assert SUPPORT_MATRIX in PAGE


def test_the_table_is_in_form() -> None:
    assert sorted(set(RELEASES)) == RELEASES
    assert all(re.fullmatch(r"2[4-9]\.(0[1-9]|1[0-2])", release) for release in RELEASES)
    for name, form in (
        ("triton", r"2\.\d+\.\d+"),
        ("tensorrt", r"\d+\.\d+\.\d+"),
        ("onnxruntime", r"1\.\d+\.\d+"),
        ("cuda", r"1\d\.\d+(\.\d+){0,2}"),
    ):
        values = [getattr(each, name) for each in CONTAINERS]
        known = [value for value in values if value]
        assert known and all(re.fullmatch(form, value) for value in known), name
        numbers = [tuple(map(int, value.split("."))) for value in known]
        assert numbers == sorted(numbers), f"{name} goes back"
    assert all(each.driver is None or 500 <= each.driver < 700 for each in CONTAINERS)
    assert list(READS.values()) == sorted(READS.values())
    assert {each.onnxruntime.rpartition(".")[0] for each in CONTAINERS if each.onnxruntime} == set(READS)


@pytest.mark.parametrize(
    ("version", "release"),
    [("8.6.1", "24.01"), ("10.9.0.34", "25.04"), ("10.10.0.31", "25.05"), ("11.4.0", None)],
)
def test_an_engine_names_the_container_of_its_release(version: str, release: str | None) -> None:
    assert image_for(version) == (release and f"nvcr.io/nvidia/tritonserver:{release}-py3")


@pytest.mark.parametrize(
    ("opset", "ir", "release"),
    [
        (17, 8, "24.01"),
        (20, 9, "24.03"),
        (20, 10, "24.05"),
        (23, 10, "25.08"),
        (23, 12, "26.02"),
        (30, 8, None),
    ],
)
def test_a_graph_names_the_oldest_container_that_reads_it(opset: int, ir: int, release: str | None) -> None:
    found = lowest_for_graph(opset, ir)
    assert (found and found.release) == release


# ------------------------------------------------------------------------------------------------------------ files


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FILES / name).read_text(encoding="utf-8")))


def test_every_file_is_on_the_page_and_names_a_release_that_is_known() -> None:
    names = sorted(path.name for path in FILES.iterdir())
    assert sorted(set(re.findall(r"\(containers/([\w.]+)\)", PAGE))) == names
    for name in names:
        text = (FILES / name).read_text(encoding="utf-8")
        named = re.findall(r"RELEASE(?::-|=)(\d+\.\d+)|(?:tritonserver|tensorrt):(\d+\.\d+)", text)
        assert {a or b for a, b in named} <= set(RELEASES), name
    both = [
        re.search(r"ARG RELEASE=(\S+)", (FILES / f"{kind}.Dockerfile").read_text())
        for kind in ("build", "serve")
    ]
    assert both[0] and both[1] and both[0][1] == both[1][1]


def test_what_the_build_container_copies_is_there() -> None:
    text = (FILES / "build.Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    assert {"sit_deploy", "training", "engines", "calibration", "setup.cfg", "constraints.txt"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_kubernetes_probes_and_ports() -> None:
    deployment, service = documents("kubernetes.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "http": 8000, "grpc": 8001, "metrics": 8002,
    }  # fmt: skip
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: probe["path"].rpartition("/")[2] for kind, probe in asked.items()} == {
        "startup": "ready", "readiness": "ready", "liveness": "live",
    }  # fmt: skip
    assert {probe["port"] for probe in asked.values()} == {"http"}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    names = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == names
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_compose_serves_what_prometheus_asks() -> None:
    (compose,) = documents("compose.yaml")
    triton, prometheus = compose["services"]["triton"], compose["services"]["prometheus"]
    assert "--model-control-mode=explicit" in triton["command"] and "--load-model=*" in triton["command"]
    assert triton["healthcheck"]["test"][-1].endswith(":8000/v2/health/ready")
    (metrics,) = (port for port in triton["command"] if port.startswith("--metrics-port="))
    (scraped,) = documents("prometheus.yaml")[0]["scrape_configs"]
    assert scraped["static_configs"][0]["targets"] == [f"triton:{metrics.partition('=')[2]}"]
    assert prometheus["volumes"][0].split(":")[0] == "./docs/containers/prometheus.yaml"


@pytest.mark.parametrize(
    ("program", "arguments", "pattern"),
    [
        ("hadolint", [], "*.Dockerfile"),
        (
            "yamllint",
            ["-d", "{extends: default, rules: {line-length: {max: 140}, document-start: disable}}"],
            "*.yaml",
        ),
        ("kubernetes-validate", ["--strict"], "kubernetes.yaml"),
    ],
)
def test_linters_have_nothing_to_say(program: str, arguments: list[str], pattern: str) -> None:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program}: pip install {program}{'-bin' if program == 'hadolint' else ''}")
    paths = sorted(FILES.glob(pattern))
    said = subprocess.run([found, *arguments, *paths], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
