#!/usr/bin/env bash
# From nothing to a preference-tuned policy: environment, SFT, DPO, table, figure.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
runs=${1:-runs/quickstart}
"$PYTHON" -m dpo_jax.main --config=experiments/quickstart.py:stage=sft \
  --workdir="$runs/sft"
"$PYTHON" -m dpo_jax.main --config=experiments/quickstart.py:stage=dpo \
  --workdir="$runs/dpo" --config.model.init_from="$runs/sft"
"$PYTHON" -m dpo_jax.results "$runs/dpo" --out="$runs/report"
echo "Figure: $runs/report/figures/curves_wide.png"
