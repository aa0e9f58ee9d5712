#!/bin/bash
#SBATCH --job-name=picollm-big
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=1-00:00:00
#SBATCH --output=picollm-big-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180

# 180 s before the time is up picollm saves and stops; submit this file again to go on.
# The folders must be on a file system that all nodes mount.
set -euo pipefail
export PICOLLM_RUNS='/scratch/me/my runs'
export PICOLLM_HOME=/scratch/me/cache
# srun does not take over --cpus-per-task by itself since Slurm 22.05.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

every_node=$(cat <<'END'
if [ "$SLURM_NODEID" = 0 ]; then
  exec picollm run --run big --profile pocket --set run.seed=3 --set launch.nproc=8 --set launch.nnodes=4
fi
exec picollm launch --join --run big
END
)
srun bash -c "$every_node"
