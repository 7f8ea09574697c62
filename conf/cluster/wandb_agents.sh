#!/usr/bin/env bash
# A sweep on a SLURM cluster: one agent on each node, each trains one run after the other on the GPUs of its node.
#   wandb sweep <sweep file>          # prints <entity>/<project>/<id>
#   sbatch conf/cluster/wandb_agents.sh <entity>/<project>/<id>
# The sweep's `command` decides what a run is; for all GPUs of a node it begins with
#   [${env}, python, -m, tasks.launch, --processes, "8", classification, fit, --config, …, ${args}]
#SBATCH --job-name=exemplar-norm-sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1           # one agent a node
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --output=sweep-%j.out
set -euo pipefail

# An agent's runs belong to its node alone: without these, each would take itself for a task of this job.
exec srun --kill-on-bad-exit=0 bash -c \
  'unset SLURM_NTASKS SLURM_NNODES SLURM_PROCID SLURM_LOCALID; exec .venv/bin/wandb agent "$1"' agent "$1"
