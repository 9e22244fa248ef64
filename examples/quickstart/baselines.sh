#!/usr/bin/env bash
# One-stage against random mixing and against the classic two stages, on the quickstart's data. Run `make quickstart` first.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=runs/quickstart/data

step() { printf '\n$ %s\n' "$*"; "$@"; }

step huatuo-data plan $data/tokens --config quickstart_random --out $data/plan_random
step huatuo train quickstart_random --run runs/quickstart_random
step huatuo ask runs/quickstart_random --recall 16

step huatuo-data import examples/quickstart/corpus/*.jsonl --out $data/unified_raw --overwrite
step huatuo-data build $data/unified_raw --tokenizer $data/tokenizer.model --out $data/tokens_raw --holdout 1
step huatuo-data plan $data/tokens_raw --config quickstart_stage1 --out $data/plan_stage1
step huatuo train quickstart_stage1 --run runs/quickstart_stage1
step huatuo-data plan $data/tokens --config quickstart_stage2 --out $data/plan_stage2
step huatuo train quickstart_stage2 --run runs/quickstart_stage2
step huatuo ask runs/quickstart_stage2 --recall 16
