#!/usr/bin/env bash
# From a bare clone to served answers on real digits: bash scripts/quickstart.sh
# Everything it makes is in .venv and runs/quickstart.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_requirements requirements.txt

out=runs/quickstart
rm -rf "$out"
mkdir -p "$out"
step() { echo; echo "== $*"; "$@"; }
hne() { local name="$1"; shift; "$venv/bin/python" -m "$name" "$@"; }

step hne hne_tf.bin.train --config=configs/digits.py --workdir="$out/digits"
step hne hne_tf.bin.evaluate --workdir="$out/digits" | tee "$out/evaluation.txt"
step hne hne_tf.bin.export --workdir="$out/digits" --model_base_path="$out/models/digits"

"$venv/bin/python" - "$out/digit.png" <<'PYTHON'
import sys
from PIL import Image
from sklearn import datasets

digit = datasets.load_digits().images[3] * (255 / 16)
Image.fromarray(digit.round().astype("uint8")).save(sys.argv[1])
PYTHON

echo; echo "== serving $out/models/digits"
touch "$out/server.log"
# Not through a shell function, whose process would be the shell's and not the server's.
"$venv/bin/python" -m serving.local_server --model_base_path="$out/models/digits" --port=0 \
  >> "$out/server.log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
until address=$(grep -o 'address=.*' "$out/server.log"); do
  kill -0 "$server" || { echo "the server did not start" >&2; exit 1; }
  sleep 0.2
done
cat "$out/server.log"
ask=(hne serving.predict --server="${address#address=}" --model=digits
  --manifest="$out/models/digits/1/assets.extra/hne_manifest.json")

# One budget that only the smallest ensemble fits, one between it and the largest, and one that fits all.
# On a busy machine sizes can measure alike, or slower than a moment ago; then they are measured again.
for attempt in 1 2 3 4 5; do
  echo; echo "== ${ask[*]} --latencies $out/digit.png"
  "${ask[@]}" --latencies "$out/digit.png" | tee "$out/latencies.json"
  budgets=$("$venv/bin/python" - "$out/latencies.json" <<'PYTHON'
import json
import sys

latency_ms = list(json.load(open(sys.argv[1])).values())
between_ms = 1.2 * (latency_ms[0] * latency_ms[-1]) ** 0.5
print(",".join(f"{ms:.2f}" for ms in (1.15 * latency_ms[0], between_ms, 4 * latency_ms[-1])))
PYTHON
  )
  if step "${ask[@]}" --budget_ms="$budgets" "$out/digit.png" | tee "$out/answers.txt"; then
    sizes=$(sed -n 's/.*ensemble of \([0-9]*\),.*/\1/p' "$out/answers.txt")
    if sort --check=quiet --numeric-sort --unique <<< "$sizes"; then
      grown=yes
      break
    fi
  fi
  echo "attempt $attempt: sizes measured alike, or slower than before"
done

echo
if [ -z "${grown:-}" ]; then
  echo "the ensemble size did not grow with the budget" >&2
  exit 1
fi
echo "== the ensemble size grew with the budget; what each size costs and gives:"
awk '/^\|/ { print; table = 1; next } table { exit }' "$out/evaluation.txt"
