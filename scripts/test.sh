#!/usr/bin/env bash
# Installs and runs the tests: bash scripts/test.sh [pytest arguments]
# Without arguments it leaves out those marked slow; `bash scripts/test.sh tests` runs them all.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_requirements requirements-dev.txt
export TF_CPP_MIN_LOG_LEVEL=3
[ "$#" -gt 0 ] || set -- -m "not slow"
# In the order of names: files with few tests, which would be last, take the most time.
"$venv/bin/python" -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@"
