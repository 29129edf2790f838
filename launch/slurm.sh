#!/bin/bash
# SLURM: one task a node, which has all GPUs of its node. From the repository's folder:
#
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh \
#       configs/pretrain_k400_b_800.py runs/k400 [--config.data.path=...]
#
# Three minutes before the time is up, and when it is preempted, the run saves and ends with 75, and
# the job goes back into the queue. So it does after a crash that restarts in place did not mend,
# five times in a row at most. What no restart mends (76, 77, 78) ends it, and so does Ctrl-C (130).
#
#SBATCH --job-name=vmae_jax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
#SBATCH --output=slurm-%j.txt
set -u
config=${1:?the configuration, as configs/demo.py}
workdir=${2:?the folder of the run, one that all nodes see}
shift 2
max_requeues=5
# crashes in a row; SLURM's own count has the preemptions as well
count_file=slurm-${SLURM_JOB_ID}.crashes
count=$(cat "$count_file" 2> /dev/null || echo 0)

# JAX would give each task one GPU only
if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
  export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
fi

# Each task says how it ended, as srun itself reports the highest code, and a process that was
# aborted because another one had ended (134) would hide why. A signal that also reaches these
# shells must not end them before the run.
task='
trap : TERM INT USR1 USR2
python -u train.py "$@" < /dev/null &
while kill -0 $! 2> /dev/null; do wait $!; code=$?; done
wait $!; last=$?
[ $last = 127 ] || code=$last  # 127: the wait before has told already
echo "task $SLURM_PROCID ended with $code"
exit $code'
codes=$(mktemp)
trap : TERM INT USR1 USR2
srun --kill-on-bad-exit=1 bash -c "$task" task \
    --config="$config" --workdir="$workdir" --distributed=auto --supervise=5 "$@" 2>&1 \
  | (trap '' TERM INT USR1 USR2
     exec awk -v codes="$codes" '
       { print; fflush() }
       /^task [0-9]+ ended with [0-9]+$/ { print $5 > codes; fflush() }')
srun_code=${PIPESTATUS[0]}

final=0 preempted=0 crashed=0
while read -r code; do
  case $code in
    0) ;;
    75) preempted=1 ;;
    70 | 129 | 13[1-9] | 1[45]? | 162 | 192) crashed=$code ;;  # above 128: death by a signal
    *) final=$code ;;
  esac
done < "$codes"
rm -f "$codes"
if [ "$final" = 0 ] && [ "$preempted" = 0 ] && [ "$crashed" = 0 ]; then
  crashed=$srun_code  # 0, or a node went without a word
fi

if [ "$final$preempted" != 00 ] || [ "$crashed" = 0 ]; then rm -f "$count_file"; fi

requeue() {
  echo "$1; requeued"
  scontrol requeue "$SLURM_JOB_ID" || exit "$2"
  exit 0
}
if [ "$final" != 0 ]; then
  echo "code $final: no restart mends it, read the lines above"
  exit "$final"
elif [ "$preempted" = 1 ]; then
  requeue "preempted, saved" 75
elif [ "$crashed" != 0 ] && [ "$count" -lt "$max_requeues" ]; then
  echo $((count + 1)) > "$count_file" || exit "$crashed"
  requeue "code $crashed: crashed" "$crashed"
elif [ "$crashed" != 0 ]; then
  echo "code $crashed: crashed, and was requeued $max_requeues times already"
  exit "$crashed"
fi
echo "done"
