# The server in an image; docs/deploy.md says how to build and run it.
#
#   docker build --target cpu --tag eft-server:cpu .
#   docker run --rm -p 8000:8000 eft-server:cpu
#
#   docker build --target cuda --tag eft-server:cuda .
#   docker run --rm --gpus all -p 8000:8000 eft-server:cuda
#
# BASE has Debian's packages and Python 3.11 or newer. The other arguments are pip's and uv's settings, for a package
# index or a certificate other than the public ones.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS install
ARG PIP_INDEX_URL PIP_CERT SSL_CERT_FILE
WORKDIR /build
COPY deploy/requirements-install.txt deploy/
RUN python3 -m venv /installer && python3 -m venv --without-pip /opt/eft \
 && /installer/bin/pip install --no-cache-dir --require-hashes --no-deps --requirement deploy/requirements-install.txt

# A lock is a layer by itself: a change of the code does not install it again.
FROM install AS install-cpu
ARG UV_DEFAULT_INDEX UV_FIND_LINKS SSL_CERT_FILE
COPY deploy/requirements-cpu.txt deploy/install-image.sh deploy/
RUN sh deploy/install-image.sh lock deploy/requirements-cpu.txt
COPY . .
RUN sh deploy/install-image.sh project

FROM install AS install-cuda
ARG UV_DEFAULT_INDEX UV_FIND_LINKS SSL_CERT_FILE
COPY deploy/requirements-cuda.txt deploy/install-image.sh deploy/
RUN sh deploy/install-image.sh lock deploy/requirements-cuda.txt
COPY . .
RUN sh deploy/install-image.sh project

FROM ${BASE} AS runtime
RUN apt-get update && apt-get install --yes --no-install-recommends libnuma1 tini && rm -rf /var/lib/apt/lists/* \
 && mkdir /home/eft /cache && chgrp 0 /home/eft /cache && chmod 775 /home/eft /cache
# Any user id works: what has to be written lies in volumes of group 0, and some libraries ask for the user's name.
ENV PATH=/opt/eft/bin:$PATH HOME=/home/eft USER=eft HF_HOME=/cache PYTHONUNBUFFERED=1
USER 10001:0
WORKDIR /home/eft
VOLUME ["/tmp", "/home/eft", "/cache"]
EXPOSE 8000
# Process 1 reaps orphans and passes signals on.
ENTRYPOINT ["tini", "--", "eft"]
CMD ["serve", "demo", "--host", "0.0.0.0"]
# Whether the engine steps: a server that loads its members or drains is not unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m CMD ["python3", "-c", \
  "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
LABEL org.opencontainers.image.title="eft-server" \
      org.opencontainers.image.description="OpenAI-compatible inference server for emulated fine-tuning on vLLM" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS cpu
COPY --from=install-cpu /opt/eft /opt/eft

FROM runtime AS cuda
# Triton compiles its way to the driver, a C module with Python's headers, when a kernel first runs on the machine.
USER root
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && { [ -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] \
      || apt-get install --yes --no-install-recommends libpython3-dev; } && rm -rf /var/lib/apt/lists/*
USER 10001:0
# The wheels bring CUDA; the container's runtime adds the GPUs and their driver.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=install-cuda /opt/eft /opt/eft
