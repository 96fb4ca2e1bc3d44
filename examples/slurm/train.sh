#!/bin/bash
#SBATCH --job-name=coco
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

run=runs/train/slurm-$SLURM_JOB_ID
resume=()
if [ -e "$run/weights/last.pt" ]; then
    resume=(--resume "$run")
fi

# srun does not take --cpus-per-task over from the job by itself.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

code=0
srun --kill-on-bad-exit=0 yolo-launch node --data coco.yaml --batch 256 \
    --project runs/train --name "slurm-$SLURM_JOB_ID" --exist-ok "${resume[@]}" || code=$?

if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
