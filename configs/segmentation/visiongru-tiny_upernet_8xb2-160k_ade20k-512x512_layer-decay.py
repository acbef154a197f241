"""UperNet with a pretrained VisionGRU-tiny on ADE20K, whose early layers learn more slowly than late ones.

Every layer of the backbone has 0.9 times the lr of the next, the heads have all of it.
`../_base_/models/upernet_visiongru.py` says how to load a pretrained backbone.
"""

_base_ = './visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'

optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
