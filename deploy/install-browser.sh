#!/bin/sh
# Install the browser that the playground's tests drive: Debian's Chromium and a font. Does nothing where there is one.
set -eu
for name in ${EFT_TEST_BROWSER:-chromium chromium-browser google-chrome}; do
  if command -v "$name" >/dev/null; then exit; fi
done
command -v apt-get >/dev/null || {
  echo "Install Chromium or Chrome; if PATH does not lead to it, set EFT_TEST_BROWSER to its path" >&2
  exit 1
}
[ "$(id -u)" = 0 ] || {
  echo "Root's part: apt-get install --no-install-recommends chromium fonts-dejavu-core" >&2
  exit 1
}
# A package manager that waits for an answer would wait for ever in CI.
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2 >&2
apt-get install --quiet=2 --yes --no-install-recommends chromium fonts-dejavu-core >&2
