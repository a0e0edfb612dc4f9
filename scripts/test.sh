#!/usr/bin/env bash
# Installs and runs every test: bash scripts/test.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_requirements requirements-dev.txt
export TF_CPP_MIN_LOG_LEVEL=3
# In the order of names: files with few tests, which would be last, take the most time.
"$venv/bin/python" -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@"
