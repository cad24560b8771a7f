"""Which container of Triton has which TensorRT: an engine runs only in the release that built it.

From the release notes of NVIDIA's TensorRT and Triton containers; "Frameworks Support Matrix" has what is not here.
"""

from __future__ import annotations

SUPPORT_MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/"

# the newest container of each release of TensorRT
_CONTAINERS = {
    "8.6.1": "24.01",
    "8.6.3": "24.04",
    "10.0.1": "24.05",
    "10.1.0": "24.06",
    "10.2.0": "24.07",
    "10.3.0": "24.08",
    "10.4.0": "24.09",
    "10.5.0": "24.10",
    "10.6.0": "24.11",
    "10.7.0": "24.12",
    "10.8.0": "25.02",
    "10.9.0": "25.04",
    "10.10.0": "25.05",
    "10.11.0": "25.06",
}


def image_for(tensorrt: str) -> str | None:
    """Return the container image with a release of TensorRT ("10.9.0.34"), None where it is not known here."""
    tag = _CONTAINERS.get(".".join(tensorrt.split(".")[:3]))
    return tag and f"nvcr.io/nvidia/tritonserver:{tag}-py3"
