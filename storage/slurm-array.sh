#!/bin/bash
# Workers of one study on Slurm: sbatch --array=1-20 storage/slurm-array.sh STUDY
# SGQUANT_STORAGE holds the URL of the database (PostgreSQL, MariaDB, gRPC proxy or journal); it is
# no option here, for others see those in the process list. SGQUANT_DATA is the folder of the data
# sets. Tasks may start and end at any time: a worker joins what
# the others have begun, and Slurm's SIGTERM lets its trial finish or gives it back.
#SBATCH --job-name=sgquant
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=sgquant-%A-%a.log
set -euo pipefail

study=${1:?usage: sbatch --array=1-20 storage/slurm-array.sh STUDY}
: "${SGQUANT_STORAGE:?set it to the URL of the database}"
export SGQUANT_STORAGE

# srun passes the signal on; a database that all tasks reach at once is met a little apart.
sleep $((RANDOM % 10))
exec srun --ntasks=1 sgquant worker "$study" \
    --root "${SGQUANT_DATA:-data}" \
    --n-jobs "${SLURM_CPUS_PER_TASK:-1}" \
    --grace 100
