#!/bin/bash
# One machine, all its GPUs in one process:
#
#   launch/gpu_box.sh configs/pretrain_k400_b_800.py runs/k400 [--config.data.path=...]
#
# Crashes and kills are mended by a new start, up to five in a row without progress. After Ctrl-C, a
# SIGTERM or the end of the terminal all is saved: the same command goes on. To outlive the terminal:
# nohup launch/gpu_box.sh ... &
set -eu
config=${1:?the configuration, as configs/demo.py}
workdir=${2:?the folder of the run}
shift 2
cd "$(dirname "$0")/.."

mkdir -p "$workdir"
# in the background, so that a signal to this script is passed on; in a session of its own, for the
# terminal's Ctrl-C would end it before it has saved
setsid python -u train.py --config="$config" --workdir="$workdir" --distributed=off \
  --supervise=5 "$@" < /dev/null > >(trap '' TERM INT HUP; exec tee -a "$workdir/log.txt") 2>&1 &
trainer=$!
trap 'kill -TERM "$trainer" 2> /dev/null || true' TERM INT HUP
while kill -0 "$trainer" 2> /dev/null; do  # a signal ends the wait, not yet the run
  wait "$trainer" && code=0 || code=$?
done
wait "$trainer" && last=0 || last=$?
[ "$last" = 127 ] || code=$last  # 127: the wait before has told already

case $code in
  0) echo "done" ;;
  75) echo "preempted, saved: start the same command again" ;;
  76) echo "loss or gradient not finite: change the settings" ;;
  77) echo "no usable checkpoint: restore one" ;;
  78) echo "settings, data or disk: read the line above" ;;
  130) echo "interrupted: start the same command again to go on" ;;
  143) echo "ended before there was anything to save" ;;
  *) echo "code $code: crashed too often without progress, see $workdir/log.txt" ;;
esac
exit "$code"
