#!/usr/bin/env bash
# Builds the wheel, installs it without extras into a new environment and uses it there. Takes a
# few minutes, and 2.5 GB of disk until it ends:
#
#   bash scripts/smoke.sh [arguments of pip install, e.g. --constraint=FILE]
#
# PYTHON names another interpreter, 3.11 to 3.13.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
checkout=$PWD
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export TF_CPP_MIN_LOG_LEVEL=3

echo "making a new environment"
"${PYTHON:-python3}" -m venv "$place/venv"
pip=("$place/venv/bin/python" -m pip --quiet --disable-pip-version-check)
# From a copy: the build would take what an older one has left in build/.
mkdir "$place/source" "$place/empty"
cp -r hne_tf serving configs tests pyproject.toml README.md LICENSE "$place/source"
"${pip[@]}" wheel --no-deps --wheel-dir="$place" "$place/source"
"$place/venv/bin/python" tests/smoke/wheel.py "$place"/hne_tf-*.whl

echo "installing hne_tf without extras"
"${pip[@]}" install "$@" "$place"/hne_tf-*.whl
cd "$place/empty"
"$place/venv/bin/python" "$checkout/tests/smoke/bare.py"
echo "the bare package works"
