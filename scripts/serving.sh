#!/usr/bin/env bash
# Trains a tree of sixteen small networks, serves it here and sweeps the load: results/serving.md.
# Some twenty minutes, on a machine that does nothing else: bash scripts/serving.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_requirements requirements.txt

name=digits_load
base="models/$name"
rm -rf "$base"
# Few examples, so that it matters how many networks answer.
"$venv/bin/python" -m hne_tf.bin.train --config=configs/digits.py --workdir="runs/$name" \
  --config.data.train_examples=150 --config.training.epochs=100 \
  --config.model.branching="(4, 2, 2)" --config.model.resnet.unit=basic \
  --config.model.resnet.widths="(16, 32, 64)" --config.model.resnet.units="(1, 1, 1)" \
  --config.model.resnet.strides="(1, 1, 1)"
"$venv/bin/python" -m hne_tf.bin.export --workdir="runs/$name" --model_base_path="$base" \
  --version=1 --batch_sizes=64

log="runs/$name/server.log"
: > "$log"
"$venv/bin/python" -m hne_tf.bin.serve --model_base_path="$base" >> "$log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
until grep -q 'address=' "$log"; do
  kill -0 "$server" || { echo "the server did not start" >&2; exit 1; }
  sleep 0.2
done
"$venv/bin/python" -m serving.load_test --model="$name" --batch_size=64 --budget_ms=250 \
  --manifest="$base/1/assets.extra/hne_manifest.json" --results=results/serving.md
