#!/bin/sh
# In an image's build: install into /opt/eft what a lock names, or the project, whose folder is the current one.
# Usage: install-image.sh lock FILE | install-image.sh project
set -eu
install() {
  /installer/bin/uv pip install --python /opt/eft/bin/python --no-cache --compile-bytecode --no-deps "$@"
}
case $1 in
lock)
  # The CPU build of torch has a version of its own (+cpu), which is wherever the settings name, or at PyTorch's index.
  install --quiet --dry-run "$(grep '^torch==' "$2")" 2>/dev/null || export UV_TORCH_BACKEND=cpu
  install --only-binary :all: --requirement "$2"
  ;;
project)
  /installer/bin/uv build --wheel --no-build-isolation --python /installer/bin/python --out-dir /wheel .
  install /wheel/*.whl
  ;;
esac
