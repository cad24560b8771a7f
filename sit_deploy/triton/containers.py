"""NVIDIA's containers of Triton: what is in each release, and which of them serves an engine or a graph.

docs/containers.md shows the table, with the addresses that its columns are from; a test holds the two together. None is what
those pages do not say, or what could not be found there.
"""

from __future__ import annotations

from dataclasses import dataclass

SUPPORT_MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/"


@dataclass(frozen=True)
class Container:
    """One release of the container.

    Attributes:
        release: year and month, as in its tag.
        triton: version of the server.
        tensorrt: version of TensorRT, without its build.
        onnxruntime: version of ONNX Runtime that its backend is made with.
        cuda: version of CUDA.
        driver: lowest branch of the driver; data-centre GPUs take some older ones too.
    """

    release: str
    triton: str | None
    tensorrt: str | None
    onnxruntime: str | None
    cuda: str | None
    driver: int | None

    @property
    def image(self) -> str:
        """The image's name."""
        return f"nvcr.io/nvidia/tritonserver:{self.release}-py3"


CONTAINERS = tuple(
    Container(*row)
    for row in (
        ("24.01", "2.42.0", "8.6.1", "1.16.3", None, None),
        ("24.02", "2.43.0", None, "1.16.3", None, None),
        ("24.03", "2.44.0", None, "1.17.2", None, 545),
        ("24.04", "2.45.0", "8.6.3", "1.17.3", "12.4", 545),
        ("24.05", "2.46.0", "10.0.1", "1.18.0", "12.4", 545),
        ("24.06", "2.47.0", "10.1.0", "1.18.0", "12.5.0.23", 545),
        ("24.07", "2.48.0", "10.2.0", "1.18.1", None, None),
        ("24.08", "2.49.0", "10.3.0", "1.18.1", None, None),
        ("24.09", "2.50.0", "10.4.0", "1.19.2", None, None),
        ("24.10", "2.51.0", "10.5.0", "1.19.2", "12.6.2", 560),
        ("24.11", "2.52.0", "10.6.0", "1.19.2", None, None),
        ("24.12", "2.53.0", "10.7.0", "1.20.1", None, None),
        ("25.01", "2.54.0", None, "1.20.1", None, None),
        ("25.02", "2.55.0", "10.8.0", "1.20.1", None, None),
        ("25.03", "2.56.0", None, "1.21.0", "12.8.1.012", 560),
        ("25.04", "2.57.0", "10.9.0", "1.21.0", "12.9.0", 575),
        ("25.05", "2.58.0", "10.10.0", "1.22.0", None, None),
        ("25.06", "2.59.0", "10.11.0", "1.22.0", "12.9.1.010", 575),
        ("25.07", "2.59.1", None, "1.22.0", None, None),
        ("25.08", "2.60.0", None, "1.23.0", "13.0.0.044", 575),
        ("25.09", "2.61.0", None, "1.23.0", None, None),
        ("25.10", "2.62.0", None, "1.23.1", "13.0.2.006", 575),
        ("25.11", "2.63.0", None, "1.23.2", None, None),
        ("25.12", "2.64.0", None, "1.23.2", "13.1.0.36", 575),
        ("26.01", "2.65.0", None, "1.23.2", None, None),
        ("26.02", "2.66.0", None, "1.24.1", "13.1.1", 575),
        ("26.03", "2.67.0", None, "1.24.2", None, None),
        ("26.04", "2.68.0", None, "1.24.4", "13.2.1", 575),
        ("26.05", "2.69.0", None, "1.24.4", None, None),
        ("26.06", "2.70.0", None, "1.24.4", "13.3.0", None),
        ("26.07", "2.71.0", None, "1.27.0", "13.3.1", None),
        ("26.08", "2.72.0", None, "1.28.0", "13.4.1", None),
        ("26.09", None, None, None, "13.4.1", None),
        ("26.10", None, None, None, "13.4.3.001", None),
    )
)

# the newest operator set and IR version that a minor release of ONNX Runtime reads: tried with its wheels, see the page
READS = {
    "1.16": (19, 9),
    "1.17": (20, 9),
    "1.18": (21, 10),
    "1.19": (21, 10),
    "1.20": (21, 10),
    "1.21": (22, 10),
    "1.22": (22, 10),
    "1.23": (23, 11),
    "1.24": (25, 13),
    "1.27": (26, 13),
    "1.28": (26, 13),
}


def image_for(tensorrt: str) -> str | None:
    """Return the newest image with a release of TensorRT ("10.9.0.34"), None where it is not known here: engines run in no other."""
    wanted = ".".join(tensorrt.split(".")[:3])
    return next((each.image for each in reversed(CONTAINERS) if each.tensorrt == wanted), None)


def lowest_for_graph(opset: int, ir: int) -> Container | None:
    """Return the oldest container whose ONNX Runtime reads graphs of an operator set and IR version, None if none here does."""
    for each in CONTAINERS:
        if each.onnxruntime is None:
            continue
        newest_opset, newest_ir = READS[each.onnxruntime.rpartition(".")[0]]
        if opset <= newest_opset and ir <= newest_ir:
            return each
    return None
