#!/usr/bin/env bash
# Trains on several machines. Run the same line on each of them; HEAD is the address of one:
#   HEAD=10.0.0.1 NODES=8 GPUS=8 examples/distributed/launch.sh configs/instruct.yaml
# Everything after the recipe is an option of `transformers-owl train`.
set -euo pipefail
: "${HEAD:?is the address of the first machine}" "${NODES:?is the number of machines}" "${GPUS:?is that of GPUs in each}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" \
  --rdzv-id "${RUN:-owl}" --no-python transformers-owl train "$@"
