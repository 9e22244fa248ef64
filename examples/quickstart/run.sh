#!/usr/bin/env bash
# The whole main job, command by command: what `make quickstart` runs. Running it again continues where it stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/quickstart
data=$run/data
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} # the figures in the README are a CPU's
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # large pages: a step's memory costs 400 page faults, not 300,000

step() { printf '\n$ %s\n' "$*"; "$@"; }

step huatuo-data unify --template examples/quickstart/corpus/*.jsonl --out $data/pairs.jsonl
step huatuo-data import $data/pairs.jsonl examples/quickstart/sft.jsonl --out $data/unified --overwrite
step huatuo-data tokenizer train $data/pairs.jsonl examples/quickstart/sft.jsonl --vocab-size 4000 --out $data/tokenizer.model
step huatuo-data build $data/unified --tokenizer $data/tokenizer.model --out $data/tokens --holdout 1
step huatuo-data plan $data/tokens --config configs/quickstart.py --out $data/plan
step huatuo-data mix --plan $data/plan --windows 11 --plot $run/plots/planned_mixing.png
step huatuo train configs/quickstart.py --run $run
printf '\n160 records by heart: the held-out loss rises, and what was drawn early (web, literature) is partly overwritten.\n'
step huatuo ask $run --recall 16
step huatuo report $run
step huatuo convert to-hf $run $run/hf --name huatuo-quickstart --license apache-2.0 --overwrite
printf '\nOpen %s/report.html; %s/hf opens in transformers. Next: source .venv/bin/activate && huatuo chat %s\n' "$run" "$run" "$run"
