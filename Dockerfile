# The environment of `make setup` in a container, for the CPU:
#   docker build -t mirrorla_mm .
# and for CUDA: an image with nvcc of the CUDA major version that torch is built for, and the
# architectures of the GPUs that it will run on.
#   docker build -t mirrorla_mm --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 \
#     --build-arg FORCE_CUDA=1 --build-arg TORCH_CUDA_ARCH_LIST='8.0;8.9;9.0' .
ARG BASE=ubuntu:24.04
FROM ${BASE}

# libGL and glib: OpenCV's wheels load them. No versions: they are those of the base image.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends -y \
        ca-certificates g++ git libgl1 libglib2.0-0 make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /mirrorla_mm
COPY . .

ARG STACK=openmmlab
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG FORCE_CUDA=0
ARG TORCH_CUDA_ARCH_LIST=
# What pip and the build of mmcv keep for another time would only fill the image.
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=${TORCH_INDEX} make setup STACK=${STACK} \
    && rm -rf ~/.cache/mirrorla_mm

ENV PATH=/mirrorla_mm/.venv/bin:${PATH}
CMD ["python", "tools/quickstart.py"]
