#!/usr/bin/env bash
# Formats the Bazel files, or with --mode=check says which need it; lints them either way.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! command -v npx > /dev/null; then
  echo "buildifier is skipped: it needs npx"
  exit
fi
git ls-files -z --cached --others --exclude-standard -- BUILD '*/BUILD' '*.bazel' '*.bzl' |
  xargs -0 npx --yes @bazel/buildifier@8.2.1 --lint=warn "${@:---mode=fix}"
