"""Every config builds, says in its name what it does, and reaches its bases in at most two steps."""

import inspect
import re

import pytest
import torch
from mmengine.registry import HOOKS, PARAM_SCHEDULERS, VISUALIZERS
from mmpretrain.evaluation import Accuracy
from mmseg.evaluation import IoUMetric

from mmvisiongru.models import VRWKV, VisionGRU, VRWKVAdapter
from tests.harness.config_builders import (
    CLASSIFIER,
    CONFIGS,
    LEAVES,
    UPERNET,
    bases,
    batch_in_name,
    build_dataset,
    build_model,
    build_optimizer,
    difference,
    load,
    scope,
)

RELEASED = CLASSIFIER.replace('.py', '_released.py')
SAVE_BEST = {'IoUMetric': 'mIoU', 'Accuracy': 'accuracy/top1'}
TRAINED = [name for name in LEAVES if load(name).get('train_cfg')]
OWN = [name for name in LEAVES if not name.startswith('peers/')]


def no_decay(name):
    """The hand rule for parameters of norm layers, wherever they are: LayerNorm here, BN in the heads."""
    return 'norm' in name or '.bn.' in name


def test_names_of_the_specification_are_there():
    names = {CLASSIFIER, CLASSIFIER.replace('.py', '_released.py'), UPERNET}
    assert names | {name.replace('tiny', 'base') for name in names} <= {*LEAVES}
    assert sum(name.startswith('ablations/visiongru-tiny') for name in LEAVES) == 14


@pytest.mark.parametrize('name', LEAVES)
def test_inheritance_is_shallow_and_by_text(name):
    def files(path):
        return 1 + max((files(base) for base in bases(path)), default=0)

    text = (CONFIGS / name).read_text()
    assert files(CONFIGS / name) <= 3
    assert '::' not in text
    assert 'get_config' not in text


def own_backbone(name):
    """The class that a config's name asks for."""
    if '/vrwkv' in name:
        return VRWKVAdapter if '-adapter_' in name else VRWKV
    return VisionGRU


@pytest.mark.parametrize('name', OWN)
def test_model_builds_with_only_arguments_of_its_backbone(name):
    cfg = load(name)
    model = build_model(cfg)
    segmentor = getattr(model, 'module', model)
    kind = own_backbone(name)
    assert type(segmentor.backbone) is kind
    backbone = cfg.model.get('module', cfg.model).backbone
    assert backbone.type == f'mmvisiongru.{kind.__name__}'
    assert set(backbone) - {'type'} <= set(inspect.signature(kind).parameters)


@pytest.mark.parametrize('name', LEAVES)
def test_datasets_and_every_transform_build(name):
    cfg = load(name)
    for split in ('train', 'val', 'test'):
        if not cfg.get(f'{split}_dataloader'):
            continue
        dataset = build_dataset(cfg, split, lazy_init=True)
        assert len(dataset.pipeline.transforms) == len(cfg[f'{split}_dataloader'].dataset.pipeline)
        assert cfg[f'{split}_dataloader'].dataset.data_root.startswith('data/')


@pytest.mark.parametrize('name', TRAINED)
def test_batch_in_the_name_is_the_batch_that_lr_is_for(name):
    cfg = load(name)
    gpus, images = batch_in_name(name)
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.base_batch_size == gpus * images
    assert cfg.auto_scale_lr.enable is False


@pytest.mark.parametrize('name', [name for name in TRAINED if 'k_ade20k' in name])
def test_iterations_in_the_name_are_those_trained(name):
    assert load(name).train_cfg.max_iters == 1000 * int(re.search(r'-(\d+)k_', name).group(1))


@pytest.mark.parametrize('name', LEAVES)
def test_run_is_seeded_logged_and_keeps_the_best(name, tmp_path):
    cfg = load(name)
    assert isinstance(cfg.randomness.seed, int)
    assert cfg.vis_backends
    assert cfg.load_from is None
    assert cfg.resume is False
    with scope(cfg):
        # The visualization hook draws on the visualizer that exists.
        VISUALIZERS.build(dict(cfg.visualizer, name=name, save_dir=str(tmp_path)))
        hooks = {key: HOOKS.build(hook) for key, hook in cfg.default_hooks.items()}
    assert hooks.keys() >= {'exact_resume', 'guard', 'bad_samples', 'stall'}
    assert hooks['checkpoint'].save_best == [SAVE_BEST[cfg.test_evaluator.type]]


@pytest.mark.parametrize('name', [CLASSIFIER, UPERNET])
def test_log_every_50_iterations(name):
    with scope(load(name)):
        assert HOOKS.build(load(name).default_hooks.logger).interval == 50


def test_best_checkpoint_follows_a_figure_that_the_metric_reports():
    top1 = Accuracy(topk=(1, 5))
    top1.results = [dict(pred_score=torch.eye(10)[i], gt_label=torch.tensor([i])) for i in range(10)]
    assert 'accuracy/top1' in {f'{top1.prefix}/{key}' for key in top1.compute_metrics(top1.results)}
    iou = IoUMetric(iou_metrics=['mIoU'])
    iou.dataset_meta = dict(classes=('a', 'b'))
    assert iou.prefix is None
    assert 'mIoU' in iou.compute_metrics([tuple(torch.tensor([3.0, 2.0]) for _ in range(4))])


@pytest.mark.parametrize('name', TRAINED)
def test_optimizer_and_schedulers_build(name, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    cfg = load(name)
    # Backbones of mmpretrain cannot be built on the meta device.
    model = build_model(cfg, 'cpu' if name.startswith('peers/') else 'meta')
    optimizer = build_optimizer(cfg, model)
    trained = sum(len(group['params']) for group in optimizer.param_groups)
    assert trained == sum(1 for _ in model.parameters())
    # Each costs the host time in every step.
    decays = 'layer_decay_rate' in cfg.optim_wrapper.get('paramwise_cfg', {})
    assert len(optimizer.param_groups) <= (32 if decays else 4)
    with scope(cfg):
        for scheduler in cfg.param_scheduler:
            PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=optimizer, epoch_length=10))


@pytest.mark.parametrize(
    ('name', 'number'),
    [
        # 33 LayerNorms (2 in the stem, 3 between stages, 2 in each of 14 blocks) have 66 parameters. Biases
        # outside of them: 2 + 3 convolutions, 3 in a block, 1 in the head.
        (CLASSIFIER, 66 + 5 + 3 * 14 + 1),
        (CLASSIFIER.replace('tiny', 'base'), 94 + 5 + 3 * 21 + 1),
        # UPerHead has 12 batch norms and the auxiliary head 1; biases decay.
        (UPERNET, 66 + 24 + 2),
        (UPERNET.replace('tiny', 'base'), 94 + 24 + 2),
    ],
)
def test_paper_recipes_spare_norms_from_weight_decay(name, number):
    model = build_model(load(name))
    optimizer = build_optimizer(load(name), model)
    names = {id(param): key for key, param in model.named_parameters()}
    spared = {
        names[id(param)]
        for group in optimizer.param_groups
        for param in group['params']
        if group['weight_decay'] == 0
    }
    biases = name.startswith('classification')
    assert spared == {key for key in names.values() if no_decay(key) or (biases and key.endswith('bias'))}
    assert len(spared) == number
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0, 0.05 if biases else 0.01}


@pytest.mark.parametrize('parent', ['8xb128_in1k', 'upernet_8xb2-160k_ade20k-512x512'])
def test_positional_embedding_is_spared_from_weight_decay(parent):
    cfg = load(f'ablations/visiongru-tiny_pos-embed_{parent}.py')
    model = build_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    decay = {id(param): group['weight_decay'] for group in groups for param in group['params']}
    assert decay[id(model.backbone.pos_embed)] == 0


@pytest.mark.parametrize('launcher', ['none', 'pytorch', 'slurm'])
def test_launcher_parts_state_the_launcher_and_its_environment(launcher):
    part = load(f'_base_/launchers/{launcher}.py')
    # Any further key would clash with the other parts of a run.
    assert set(part) == {'launcher', 'env_cfg'}
    assert part.launcher == launcher
    assert part.env_cfg.dist_cfg.backend == 'nccl'


def test_slurm_variant_changes_the_launcher_alone():
    assert difference(UPERNET.replace('.py', '_slurm.py'), UPERNET) == {'launcher': 'slurm'}


def test_80k_variant_changes_the_length_alone():
    assert difference(UPERNET.replace('160k', '80k'), UPERNET) == {'train_cfg.max_iters': 80000}


def test_layer_decay_variant_changes_the_rate_alone():
    changed = difference(UPERNET.replace('.py', '_layer-decay.py'), UPERNET)
    assert changed == {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.9}


AMP = {name: name.replace('160k', 'amp-160k') for name in (UPERNET, UPERNET.replace('tiny', 'base'))}
AMP |= {
    name: name.replace('8xb128', '8xb128-amp')
    for name in (CLASSIFIER, RELEASED, *(n.replace('tiny', 'base') for n in (CLASSIFIER, RELEASED)))
}


@pytest.mark.parametrize('name', AMP)
def test_amp_variant_changes_the_precision_alone(name):
    assert difference(AMP[name], name) == {
        'optim_wrapper.type': 'AmpOptimWrapper',
        'optim_wrapper.dtype': 'bfloat16',
        'optim_wrapper.loss_scale': 1.0,
        'channels_last': True,
    }


@pytest.mark.parametrize('name', [name for name in AMP if 'released' not in name])
def test_compile_variant_is_the_amp_variant_compiled(name):
    assert difference(AMP[name].replace('amp', 'amp-compile'), AMP[name]) == {'compile.fullgraph': True}


def test_the_released_recipe_takes_tf32_and_no_other():
    taken = [name for name in LEAVES if (load(name).get('env_cfg') or {}).get('tf32')]
    assert taken == [name for name in LEAVES if 'released' in name]


def test_tta_variant_is_the_parent_wrapped():
    parent, tta = load(UPERNET), load(UPERNET.replace('.py', '_tta.py'))
    assert tta.model.to_dict() == dict(type='SegTTAModel', module=parent.model.to_dict())
    assert tta.test_dataloader.dataset.pipeline == parent.tta_pipeline
    assert parent.tta_model.type == 'SegTTAModel'
    # A runner refuses to train it in one line instead of failing in the first iteration.
    assert tta.train_cfg is tta.optim_wrapper is tta.train_dataloader is None
    assert tta.val_cfg is tta.val_dataloader is tta.val_evaluator is None
