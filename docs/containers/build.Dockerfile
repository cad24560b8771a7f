# sit-deploy with full TensorRT, in NVIDIA's container of it: builds engines for the Triton container of the same release.
#
#     docker build -f docs/containers/build.Dockerfile -t sit-deploy-build .
#     docker run --rm --gpus all --ipc=host -v "$PWD/work:/work" sit-deploy-build \
#         build --checkpoint student.safetensors --precision fp16 --engine tensorrt --dynamic-batch 1:8:32 -o sit_s-fp16
#
# Full TensorRT times its kernels while it builds, so a GPU is needed by `docker run`, not by `docker build`. Build on the
# kind of GPU that is to serve. From the folder of the repository: what is copied is what is installed.
ARG RELEASE=25.06
FROM nvcr.io/nvidia/tensorrt:${RELEASE}-py3

# The container has TensorRT and its Python module, of the release that the engine will be bound to; pip must not bring another,
# so the extra `tensorrt` is not asked for: only what runs the engine.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
COPY setup.cfg pyproject.toml README.md LICENSE constraints.txt /opt/sit-deploy/
COPY sit_deploy /opt/sit-deploy/sit_deploy
COPY training /opt/sit-deploy/training
COPY engines /opt/sit-deploy/engines
COPY calibration /opt/sit-deploy/calibration
RUN python3 -m pip install "/opt/sit-deploy[triton]" "pycuda>=2024.1" "cuda-bindings>=12.8" \
    && python3 -c "import tensorrt; print(tensorrt.__version__)"

WORKDIR /work
ENTRYPOINT ["sit-deploy"]
CMD ["doctor"]
