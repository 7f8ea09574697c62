#!/usr/bin/env bash
# One run for each seed on 4 nodes with 8 GPUs each:
#   sbatch conf/cluster/slurm.sh classification conf/classification/imagenet_resnet50.yaml --data.root /data/imagenet
# Before the time limit each run saves, stops and is queued again under its job id, and then goes on by itself.
#SBATCH --job-name=exemplar-norm
#SBATCH --array=0-2                   # the seeds
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8           # one process a GPU
#SBATCH --gpus-per-node=8             # not --gpus-per-task: each process has to see the GPUs of its node
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=SIGUSR1@120          # to the processes, this many seconds before the limit
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out
set -euo pipefail

task=$1 config=$2
shift 2
seed=$SLURM_ARRAY_TASK_ID

# All seeds may start at once: the name keeps their run folders apart. runs/ lies on the shared file system.
exec srun --kill-on-bad-exit=1 .venv/bin/python -m "tasks.$task" fit \
  --config "$config" --config conf/trainer/multinode.yaml \
  --seed_everything "$seed" --name "$(basename "$config" .yaml)-seed$seed" --test true "$@"
