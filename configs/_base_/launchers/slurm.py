"""The tasks that srun starts: `tools/slurm_train.sh PARTITION JOB_NAME CONFIG`.

The port is $MASTER_PORT, or else one that follows from the job's number.
"""

_base_ = 'none.py'

launcher = 'slurm'
