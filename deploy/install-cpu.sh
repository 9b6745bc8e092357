#!/bin/sh
# Install the CPU build into a virtual environment from a lock, and nothing that the lock does not name.
# Usage: install-cpu.sh VENV LOCK [EXTRAS]    (PYTHON names the interpreter, python3 by default)
# With extras of pyproject.toml, such as bench,probe: what that needs instead of the whole lock, in the lock's versions.
set -eu
venv=$1 lock=$2 extra=${3:-} python=${PYTHON:-python3} here=$(dirname "$0")

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || {
  echo "The locks are for Linux on x86-64; this is $(uname -s) on $(uname -m)" >&2
  exit 1
}
command -v "$python" >/dev/null || {
  echo "There is no $python. Try: make PYTHON=/path/to/python3.11 install" >&2
  exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; $python is $("$python" -V 2>&1). Try: make PYTHON=python3.12 install" >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip "$@"; }
uv() { "$venv/bin/uv" pip install --python "$venv/bin/python" "$@"; }

pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement "$here/requirements-install.txt"

# uv does not read where pip's settings send it.
: "${UV_DEFAULT_INDEX:=${PIP_INDEX_URL:-$(pip config get global.index-url 2>/dev/null || true)}}"
: "${UV_FIND_LINKS:=${PIP_FIND_LINKS:-$(pip config get global.find-links 2>/dev/null || true)}}"
if [ -n "$UV_DEFAULT_INDEX" ]; then export UV_DEFAULT_INDEX; else unset UV_DEFAULT_INDEX; fi
if [ -n "$UV_FIND_LINKS" ]; then UV_FIND_LINKS=$(echo "$UV_FIND_LINKS" | tr ' ' ,); export UV_FIND_LINKS; else unset UV_FIND_LINKS; fi
# The CPU build of torch has a version of its own (+cpu), which is wherever the settings name, or at PyTorch's index.
uv --quiet --no-deps --dry-run "$(grep '^torch==' "$lock")" 2>/dev/null || export UV_TORCH_BACKEND=cpu

if [ -n "$extra" ]; then
  uv --compile-bytecode --only-binary :all: --no-build-isolation --constraint "$lock" --editable "$here/..[$extra]"
  exit
fi
uv --compile-bytecode --only-binary :all: --no-deps --requirement "$lock"
uv --quiet --no-build-isolation --no-deps --editable "$here/.."
