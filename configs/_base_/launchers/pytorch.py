"""The processes that torchrun starts: `tools/dist_train.sh CONFIG GPUS`."""

launcher = 'pytorch'
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Seconds after which a rank that waits for the others gives up. Without a GPU the backend is gloo.
    dist_cfg=dict(backend='nccl', timeout=1800),
)
