#!/bin/bash
# A TPU VM or a pod slice of them, by gcloud:
#
#   export TPU=my-tpu ZONE=us-east5-b           # made by: gcloud compute tpus tpu-vm create ...
#   launch/tpu_vm.sh setup                      # copies this folder to all hosts and installs it
#   launch/tpu_vm.sh start configs/pretrain_k400_b_800.py gs://bucket/k400 [--config.data.path=...]
#   launch/tpu_vm.sh status                     # per host: running, or how it ended; its last line
#   launch/tpu_vm.sh stop                       # saves and ends
#
# The run goes on without this terminal. Each host restarts its own process after a crash, and they
# find each other again. After a preemption: setup and start on a new TPU, with the same workdir.
set -eu
: "${TPU:?name of the TPU}" "${ZONE:?its zone}"
cd "$(dirname "$0")/.."

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

case "${1:-}" in
  setup)
    archive=$(mktemp -d)/vmae_jax.tar.gz
    git archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:vmae_jax.tar.gz" --zone="$ZONE" --worker=all
    on_all_hosts 'rm -rf vmae_jax && mkdir vmae_jax && tar -xzf vmae_jax.tar.gz -C vmae_jax &&
      python3 -m venv venv && venv/bin/pip install --quiet "./vmae_jax[tpu,data,gcs]"'
    ;;
  start)
    config=${2:?the configuration, as configs/demo.py}
    workdir=${3:?gs://... of the run}
    shift 3
    arguments=$(printf ' %q' --config="$config" --workdir="$workdir" --distributed=auto \
      --supervise=5 "$@")
    on_all_hosts "cd vmae_jax && rm -f ../ended && { setsid nohup bash -c '
      trap : TERM
      ../venv/bin/python -u train.py \"\$@\" & echo \$! > ../pid
      while kill -0 \$! 2> /dev/null; do wait \$!; code=\$?; done
      wait \$!; last=\$?; [ \$last = 127 ] || code=\$last
      echo \$code > ../ended' train$arguments > ../log.txt 2>&1 < /dev/null & }"
    ;;
  status)
    # 0 done; 130 interrupted; 75 preempted, 70 and others above 128 crashed: start again. 76, 77,
    # 78: read the log first.
    on_all_hosts 'if [ -f ended ]; then echo "$(hostname): ended with $(cat ended)"
      elif [ -f pid ] && kill -0 "$(cat pid)"; then echo "$(hostname): running"
      else echo "$(hostname): not started, or killed"; fi
      tail -n 1 log.txt'
    ;;
  stop)
    on_all_hosts '[ -f pid ] && kill -TERM "$(cat pid)"'
    ;;
  *)
    echo "usage: TPU=... ZONE=... $0 setup | start CONFIG WORKDIR [FLAGS] | status | stop" >&2
    exit 2
    ;;
esac
