# Sourced by the other scripts: makes the virtual environment and installs into it.
# HNE_VENV names the folder of an environment; .venv in the checkout by default.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${HNE_VENV:-.venv}"
if [ ! -x "$venv/bin/python" ]; then
  echo "making a virtual environment in $venv"
  "${PYTHON:-python3}" -m venv "$venv"
fi
# The stamp holds what was installed, so that changed requirements install again.
install_requirements() {
  local stamp="$venv/.installed-$1"
  if ! cmp -s "$stamp" <(cat requirements_lock.txt "$1" pyproject.toml); then
    echo "installing $1 (about 1 GB the first time)"
    "$venv/bin/python" -m pip install --quiet --requirement "$1" \
      --constraint requirements_lock.txt
    "$venv/bin/python" -m pip install --quiet --no-deps --editable .
    cat requirements_lock.txt "$1" pyproject.toml > "$stamp"
  fi
}
