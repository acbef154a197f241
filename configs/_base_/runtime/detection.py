"""Hooks, logging and seed of a detection run. `env_cfg` comes with the launcher, in ../launchers."""

default_scope = 'mmdet'

runner_type = 'mmvisiongru.ReliableRunner'
# Training samples that a process may skip because a file is broken.
max_bad_samples = 10

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='mmvisiongru.AtomicLoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmvisiongru.AtomicCheckpointHook', interval=1, max_keep_ckpts=3, save_best='coco/bbox_mAP'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook', draw=False),
    # What these keep from going wrong is in docs/reliability.md.
    exact_resume=dict(type='mmvisiongru.ExactResumeHook'),
    guard=dict(type='mmvisiongru.GuardHook', patience=3),
    bad_samples=dict(type='mmvisiongru.BadSampleHook'),
    stall=dict(type='mmvisiongru.StallHook', timeout=1800),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=True)

# Without a seed, each run draws one; a resumed run takes that of its checkpoint.
randomness = dict(seed=0, deterministic=False)

log_level = 'INFO'
load_from = None
resume = False
