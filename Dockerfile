# An image of yolo-launch: as any user, on a read-only root, and as the first process of its container.
#   docker build -t yolo-launch .                                                     # torch as PyPI has it: with CUDA
#   docker build -t yolo-launch:cpu --build-arg TORCH_INDEX=URL_OF_TORCHS_CPU_WHEELS .
# BASE is any image with Python 3.10 to 3.13, its venv and pip.
ARG BASE=docker.io/library/python:3.12-slim
FROM ${BASE}

# Another package index to take torch from, which decides between CPU and versions of CUDA. Empty: the default index alone.
ARG TORCH_INDEX=
# More options of pip's, such as --constraint /src/constraints.txt.
ARG PIP_OPTIONS=

COPY . /src
# An environment of its own: the base's packages stay the base's.
RUN python3 -m venv /opt/yolo-launch \
    && if [ -n "${TORCH_INDEX}" ]; then \
        /opt/yolo-launch/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" torch torchvision; \
    fi \
    && /opt/yolo-launch/bin/pip install --no-cache-dir ${PIP_OPTIONS} /src \
    && rm -rf /src \
    && mkdir /work && chmod 1777 /work

ENV PATH=/opt/yolo-launch/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /work
# A number, since Kubernetes checks runAsNonRoot by it. Any other works too: nothing asks for a name or a home.
USER 65532:65532
# Without a shell or an init in between, signals reach the launcher, which collects what ends as PID 1 has to.
ENTRYPOINT ["yolo-launch"]
CMD ["--help"]
