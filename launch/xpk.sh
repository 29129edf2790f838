#!/bin/bash
# GKE by XPK, which writes the JobSet:
#
#   launch/xpk.sh my-cluster v6e-16 IMAGE k400 configs/pretrain_k400_b_800.py gs://bucket/k400
#
# XPK restarts after the codes it is given, and fails after all others.
set -eu
cluster=${1:?the cluster} tpu_type=${2:?as v6e-16} image=${3:?of this repository} name=${4:?of the run}
config=${5:?the configuration} workdir=${6:?gs://... of the run}
shift 6
arguments=$(printf ' %q' --config="$config" --workdir="$workdir" --distributed=auto --supervise=5 "$@")
exec xpk workload create --cluster="$cluster" --tpu-type="$tpu_type" --docker-image="$image" \
  --workload="$name" --command="python -u train.py$arguments" \
  --max-restarts=100 --restart-on-exit-codes=70,75,134,137,139,142,143
