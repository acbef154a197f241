"""Multi-scale and flip testing of UperNet with VisionGRU-tiny on ADE20K; it only tests.

The same as `tools/test.py --tta` with the config that it inherits.
"""

_base_ = './visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(_delete_=True, type='SegTTAModel', module={{_base_.model}})
test_dataloader = dict(dataset=dict(pipeline={{_base_.tta_pipeline}}))

train_cfg = None
train_dataloader = None
optim_wrapper = None
param_scheduler = None
val_cfg = None
val_dataloader = None
val_evaluator = None
