#!/usr/bin/env bash
# Raw events → measured recommendations on MovieLens-100K, every stage a command of its own. `make quickstart` calls this
# with the virtual environment on PATH; the result is runs/quickstart/.
set -euo pipefail
cd "$(dirname "$0")"

config=configs/movielens-100k.yaml
run=runs/quickstart
ranks=${RANKS:-2}

echo "── 1/4  raw log → event store"
python -m data.prepare --config $config

echo "── 2/4  item vectors → semantic ids"
python -m semantic_ids.fit --config $config

echo "── 3/4  train on $ranks ranks, tables sharded by rows"
OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node "$ranks" -m trainer.train --config $config run=$run overwrite=true

echo "── 4/4  recommend to every user and measure"
python -m evaluation.evaluate --config $config run=$run
