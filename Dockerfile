# The server in an image; docs/deploy.md says how to build and run it.
#
#   docker build --target cpu --tag eft-server:cpu .
#   docker run --rm --shm-size 512m -p 8000:8000 eft-server:cpu
#
# BASE has Debian's packages and Python 3.11 or newer. The other arguments are pip's and uv's settings, for a package
# index or a certificate other than the public ones.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS install-cpu
ARG PIP_INDEX_URL PIP_CERT UV_DEFAULT_INDEX UV_FIND_LINKS SSL_CERT_FILE
WORKDIR /build
COPY deploy/requirements-install.txt deploy/
RUN python3 -m venv /installer && python3 -m venv --without-pip /opt/eft \
 && /installer/bin/pip install --no-cache-dir --require-hashes --no-deps --requirement deploy/requirements-install.txt
# The lock is a layer by itself: a change of the code does not install it again.
COPY deploy/requirements-cpu.txt deploy/install-image.sh deploy/
RUN sh deploy/install-image.sh lock deploy/requirements-cpu.txt
COPY . .
RUN sh deploy/install-image.sh project

FROM ${BASE} AS cpu
RUN apt-get update && apt-get install --yes --no-install-recommends libnuma1 tini && rm -rf /var/lib/apt/lists/* \
 && mkdir /home/eft /cache && chgrp 0 /home/eft /cache && chmod 775 /home/eft /cache
COPY --from=install-cpu /opt/eft /opt/eft
# Any user id works: what has to be written lies in volumes of group 0, and some libraries ask for the user's name.
ENV PATH=/opt/eft/bin:$PATH HOME=/home/eft USER=eft HF_HOME=/cache PYTHONUNBUFFERED=1
USER 10001:0
WORKDIR /home/eft
VOLUME ["/tmp", "/home/eft", "/cache"]
EXPOSE 8000
# Process 1 reaps orphans and passes signals on.
ENTRYPOINT ["tini", "--", "eft"]
CMD ["serve", "demo", "--host", "0.0.0.0"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m CMD ["python3", "-c", \
  "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
LABEL org.opencontainers.image.title="eft-server" \
      org.opencontainers.image.description="OpenAI-compatible inference server for emulated fine-tuning on vLLM" \
      org.opencontainers.image.licenses="Apache-2.0"
