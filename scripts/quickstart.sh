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
"$venv/bin/python" -m hne_tf.bin.serve --model_base_path="$out/models/digits" --port=0 \
  >> "$out/server.log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
until address=$(grep -o 'address=.*' "$out/server.log"); do
  kill -0 "$server" || { echo "the server did not start" >&2; exit 1; }
  sleep 0.2
done
cat "$out/server.log"
ask=(hne hne_tf.bin.predict --server="${address#address=}" --model=digits
  --manifest="$out/models/digits/1/assets.extra/hne_manifest.json")

# One budget that only the smallest ensemble fits, one between it and the largest, and one that fits all.
"${ask[@]}" --latencies "$out/digit.png" > "$out/latencies.json"
budgets=$("$venv/bin/python" - "$out/latencies.json" <<'PYTHON'
import json
import sys

latency_ms = list(json.load(open(sys.argv[1])).values())
between_ms = 1.2 * (latency_ms[0] * latency_ms[-1]) ** 0.5
print(*(f"{ms:.2f}" for ms in (1.15 * latency_ms[0], between_ms, 4 * latency_ms[-1])))
PYTHON
)
for budget in $budgets; do
  # Sizes that measured alike a moment ago may be refused now; that is no failure.
  step "${ask[@]}" --budget_ms="$budget" "$out/digit.png" 2>&1 | tee -a "$out/answers.txt" ||
    grep -q "budget must allow" "$out/answers.txt"
done
sizes=$(sed -n 's/.*ensemble of \([0-9]*\),.*/\1/p' "$out/answers.txt")

echo
if [ "$(wc -w <<< "$sizes")" -lt 3 ] || ! sort --check=quiet --numeric-sort --unique <<< "$sizes"; then
  echo "this machine is too busy to tell the sizes apart just now"
fi
echo "== what each size costs and gives:"
awk '/^\|/ { print; table = 1; next } table { exit }' "$out/evaluation.txt"
