"""VisionGRU-pico on CamVid enlarged 1.5 to 2.25 times, for the experiment with a scan in log space."""

_base_ = '../../../configs/segmentation/visiongru-pico_upernet_1xb8-1k_camvid-180x240.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(720, 540), ratio_range=(1.0, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(720, 540), keep_ratio=True),
    # After the resize, so that predictions are compared at the size of the photographs.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

model = dict(data_preprocessor=dict(size=(512, 512)))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=20),
]
train_cfg = dict(max_iters=120, val_interval=120)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=120))
