# The versions of requirements/pinned.txt, with torch for CPUs or, by argument, for a version of CUDA:
#
#     docker build -t mmvisiongru .
#     docker build -t mmvisiongru --build-arg TORCH=cu130 .
#     docker run --rm -it --gpus all --shm-size 8g -v /path/to/data:/mmvisiongru/data mmvisiongru
#
# torch brings the libraries of CUDA; the host needs the driver and the NVIDIA Container Toolkit.
FROM python:3.13-slim

# The C++ compiler builds the scan on a CPU and the launchers of Triton.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ENV VENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
WORKDIR /mmvisiongru
COPY requirements requirements
ARG TORCH=cpu
RUN python -m venv "$VENV" \
    && grep '^torch' requirements/pinned.txt > torch.txt \
    && pip install -r torch.txt --index-url "https://download.pytorch.org/whl/$TORCH" \
    && rm torch.txt
COPY . .
RUN bash tools/misc/make_env.sh
CMD ["bash"]
