#!/bin/sh
# Install the CPU build into a virtual environment from the lock, and nothing that the lock does not name.
# Usage: install-cpu.sh VENV LOCK     (PYTHON names the interpreter, python3 by default)
set -eu
venv=$1 lock=$2 python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; $python is $("$python" -V 2>&1). Try: make PYTHON=python3.12 install" >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
py="$venv/bin/python"
pip() { "$py" -m pip "$@"; }
export PIP_DISABLE_PIP_VERSION_CHECK=1

echo "Installing into $venv (a few minutes the first time)"
pip install --quiet "$(grep '^uv==' "$lock")"
# A CPU build of torch has a version of its own (+cpu). pip finds it where its settings name a place that has it;
# uv knows PyTorch's own.
torch=$(grep '^torch==' "$lock")
pip install --quiet --no-deps "$torch" 2>/dev/null ||
  "$venv/bin/uv" pip install --quiet --python "$py" --no-deps --torch-backend cpu "$torch"
pip install --quiet --no-deps --requirement "$lock"
pip install --quiet --no-deps --editable .
