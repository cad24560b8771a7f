# A model repository of `sit-deploy package triton`, in NVIDIA's container of Triton.
#
#     sit-deploy package triton sit_s-fp16 -o models        # its README and the command itself name the container
#     docker build -f docs/containers/serve.Dockerfile --build-arg RELEASE=25.06 -t sit-s-serve .
#     docker run --rm --gpus all --shm-size 1g --ulimit stack=1073741824 -p 8000:8000 -p 8001:8001 -p 8002:8002 sit-s-serve
#
# An engine of TensorRT runs in the release that it was built with and in no other: the same RELEASE as in build.Dockerfile.
ARG RELEASE=25.06
FROM nvcr.io/nvidia/tritonserver:${RELEASE}-py3

# For --backend python and --ensemble alone; tensorrt and onnxruntime need nothing. "onnxruntime numpy", or "openvino numpy" for bundles of
# --engine openvino, and pillow for --ensemble: the model's README says.
ARG PYTHON_PACKAGES=""
# hadolint ignore=DL3013
RUN if [ -n "${PYTHON_PACKAGES}" ]; then \
        PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir ${PYTHON_PACKAGES}; \
    fi
COPY models /models

# 8000 HTTP, 8001 gRPC, 8002 metrics
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=5m --retries=3 \
    CMD ["curl", "--fail", "--silent", "--show-error", "http://localhost:8000/v2/health/ready"]
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=none", "--exit-on-error=true"]
