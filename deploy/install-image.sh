#!/bin/sh
# In an image's build: install into /opt/eft what a lock names, or the project, whose folder is the current one.
# Usage: install-image.sh lock FILE | install-image.sh project
set -eu
install() {
  /installer/bin/uv pip install --python /opt/eft/bin/python --no-cache --compile-bytecode --no-deps "$@"
}
case $1 in
lock)
  if cpu_torch=$(grep '^torch==.*+cpu$' "$2"); then
    # The CPU build of torch has a version of its own, which is wherever the settings name, or at PyTorch's index.
    install --quiet --dry-run "$cpu_torch" 2>/dev/null || export UV_TORCH_BACKEND=cpu
    install --only-binary :all: --requirement "$2"
  else
    # Links may name that build, which uv takes for a later one of the same version.
    unset UV_FIND_LINKS
    install --only-binary :all: --require-hashes --requirement "$2"
  fi
  ;;
project)
  /installer/bin/uv build --wheel --no-build-isolation --python /installer/bin/python --out-dir /wheel .
  install /wheel/*.whl
  ;;
esac
