#!/usr/bin/env bash
# From a bare clone to served answers on real digits: bash scripts/quickstart.sh
# Everything it makes is in .venv and runs/quickstart.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_requirements requirements.txt
export TF_CPP_MIN_LOG_LEVEL=3

out=runs/quickstart
rm -rf "$out"
mkdir -p "$out"
exec 3>&1
# Training takes Ctrl-C as a wish to stop and ends well; the rest must not go on from there.
trap 'exit 130' INT
say() { printf '\n%s\n' "$*"; }
hne() {
  echo "\$ hne-$1 ${*:2}" >&3
  "$venv/bin/python" -m "hne_tf.bin.$1" "${@:2}"
}

say "Train a tree of 16 networks on handwritten digits"
hne train --config=configs/quickstart.py --workdir="$out/digits"

say "Measure it, export it, show it on a page"
hne evaluate --workdir="$out/digits" > "$out/evaluation.txt"
hne export --workdir="$out/digits" --model_base_path="$out/models/digits"
hne report "$out/digits" --models="$out/models/digits/1" --output="$out/report.html"

say "Serve it"
"$venv/bin/python" -m scripts.digit_pictures "$out/test"
touch "$out/server.log"
echo "\$ hne-serve --model_base_path=$out/models/digits --max_rows=360 --port=0"
# Not through a shell function, whose process would be the shell's and not the server's.
"$venv/bin/python" -m hne_tf.bin.serve --model_base_path="$out/models/digits" --max_rows=360 --port=0 \
  >> "$out/server.log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
until address=$(grep -o 'address=.*' "$out/server.log"); do
  kill -0 "$server" || { echo "the server did not start" >&2; exit 1; }
  sleep 0.2
done
cat "$out/server.log"

say "Ask for all test digits in one request, with budgets for 1, 4 and 16 networks"
ask=(--server="${address#address=}" --model=digits
  --manifest="$out/models/digits/1/assets.extra/hne_manifest.json"
  --latencies --budget_for=1,4,16 --batch --score)
echo "\$ hne-predict ${ask[*]} $out/test/*/*.png"
# 3: every budget was refused, which can happen where much else runs.
"$venv/bin/python" -m hne_tf.bin.predict "${ask[@]}" "$out"/test/*/*.png \
  | tee "$out/answers.txt" || [ $? = 3 ]

sed -n 's/^\([0-9]*\) of \([0-9]*\) right.*/\1 \2/p' "$out/answers.txt" |
  awk '$1 < 0.9 * $2 { exit 1 }' || { echo "too few digits are right" >&2; exit 1; }
sizes=$(sed -n 's/.*ensemble of \([0-9]*\),.*/\1/p' "$out/answers.txt")
if [ "$(wc -w <<< "$sizes")" -lt 3 ] || ! sort -C --numeric-sort --unique <<< "$sizes"; then
  echo "Two budgets got the same size or one was refused: other work keeps this machine busy."
fi

say "Look next at
  $out/report.html  what a budget buys; opens in a browser
  README.md                    the same in a notebook, in 25 lines
  docs/data.md                 your own pictures
  docs/index.md                everything else: training, serving, phones, extending
  results/README.md            figures for CIFAR-10"
