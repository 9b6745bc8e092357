#!/bin/sh
# Build a target of the Dockerfile, by docker where its daemon answers, else by buildah, which needs none.
# Usage: build-image.sh TARGET [TAG]     (BASE names the image to build on, if not the Dockerfile's)
# Passes on where pip's settings and the environment send pip and uv.
set -eu
target=$1 tag=${2:-eft-server:$1} here=$(cd "$(dirname "$0")/.." && pwd)
setting() { python3 -m pip config get "global.$1" 2>/dev/null || true; }

: "${UV_DEFAULT_INDEX:=${PIP_INDEX_URL:-$(setting index-url)}}"
: "${UV_FIND_LINKS:=${PIP_FIND_LINKS:-$(setting find-links)}}"
: "${PIP_INDEX_URL:=$UV_DEFAULT_INDEX}"
set --
for name in BASE PIP_INDEX_URL PIP_CERT UV_DEFAULT_INDEX UV_FIND_LINKS SSL_CERT_FILE; do
  eval "value=\${$name:-}"
  [ -z "$value" ] || set -- "$@" --build-arg "$name=$value"
done
if docker info >/dev/null 2>&1; then
  exec docker build --target "$target" --tag "$tag" "$@" "$here"
fi
# Files that the settings name are not in the image.
for path in "${UV_FIND_LINKS:-}" "${SSL_CERT_FILE:-}" "${PIP_CERT:-}"; do
  case $path in
  /*) [ ! -e "$path" ] || set -- "$@" --volume "$path:$path:ro" ;;
  esac
done
exec buildah bud --format docker --layers --network host --target "$target" --tag "$tag" "$@" "$here"
