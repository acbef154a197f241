"""The tasks that srun starts: `tools/slurm_train.sh PARTITION JOB_NAME CONFIG`."""

launcher = 'slurm'
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Seconds after which a rank that waits for the others gives up. The port is $MASTER_PORT, or else one
    # that follows from the job's number.
    dist_cfg=dict(backend='nccl', timeout=1800),
)
