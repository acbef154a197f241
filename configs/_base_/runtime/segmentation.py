"""Hooks, logging and seed of a segmentation run. `env_cfg` comes with the launcher, in ../launchers."""

default_scope = 'mmseg'

runner_type = 'mmvisiongru.ReliableRunner'
# Training samples that a process may skip because a file is broken.
max_bad_samples = 10

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='mmvisiongru.AtomicLoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmvisiongru.AtomicCheckpointHook',
        by_epoch=False,
        interval=16000,
        max_keep_ckpts=3,
        save_best='mIoU',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook', draw=False),
    # What these keep from going wrong is in docs/reliability.md.
    exact_resume=dict(type='mmvisiongru.ExactResumeHook'),
    guard=dict(type='mmvisiongru.GuardHook', patience=3),
    bad_samples=dict(type='mmvisiongru.BadSampleHook'),
    stall=dict(type='mmvisiongru.StallHook', timeout=1800),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)

# Merges the predictions of `tta_pipeline` under `tools/test.py --tta`.
tta_model = dict(type='SegTTAModel')

# Without a seed, each run draws one; a resumed run takes that of its checkpoint.
randomness = dict(seed=0, deterministic=False)

log_level = 'INFO'
load_from = None
resume = False
