"""One process. `--launcher` overrides; `dist_cfg` is what it then uses."""

launcher = 'none'
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Seconds after which a rank that waits for the others gives up.
    dist_cfg=dict(backend='nccl', timeout=1800),
)
