"""Groups of parameters: as few as there are settings, with the numbers of mmengine's and mmpretrain's."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor

from mmvisiongru.errors import InputError
from tests.harness.config_builders import CLASSIFIER, build_model, load, scope
from tests.harness.toy import run, toy_runner

GROUPED = 'mmvisiongru.GroupedOptimWrapperConstructor'
PICO = {
    'classifier': 'classification/visiongru-pico_1xb64_digits.py',
    'segmentor': 'segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py',
}


def optimizer_of(cfg, model, constructor=GROUPED, fused=None, **paramwise):
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    wrapper.constructor = constructor
    wrapper.setdefault('paramwise_cfg', {}).update(paramwise)
    if fused is not None:
        wrapper.optimizer.fused = fused
    with scope(cfg):
        return build_optim_wrapper(model, wrapper).optimizer


def settings(optimizer, model) -> dict:
    """lr and weight decay of every parameter, by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for p in group['params']
    }


@pytest.mark.parametrize('task', PICO)
# Fused kernels round differently.
@pytest.mark.parametrize(('fused', 'rtol'), [(False, 0), (None, 1e-6)])
def test_steps_are_those_of_a_group_for_each_parameter(task, fused, rtol):
    cfg = load(PICO[task])
    results = []
    for constructor in ('DefaultOptimWrapperConstructor', GROUPED):
        torch.manual_seed(0)
        model = build_model(cfg, 'cpu')
        paramwise = dict(custom_keys=dict(stem=dict(lr_mult=0.1), mixer=dict(decay_mult=0.5)))
        paramwise |= dict(dwconv_decay_mult=0.0, fused=fused if constructor == GROUPED else None)
        optimizer = optimizer_of(cfg, model, constructor, **paramwise)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        results.append((optimizer, {name: p.detach() for name, p in model.named_parameters()}))
    (single, expected), (grouped, found) = results
    assert (len(single.param_groups), len(grouped.param_groups)) == (len(expected), 4)
    assert grouped.defaults['fused'] is (fused is None)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=rtol * float(value.abs().max()), msg=name
        )


def test_layer_decay_of_a_classifier_is_that_of_mmpretrain():
    cfg = load(CLASSIFIER)
    model = build_model(cfg)
    theirs = optimizer_of(cfg, model, LearningRateDecayOptimWrapperConstructor, layer_decay_rate=0.8)
    ours = optimizer_of(cfg, model, layer_decay_rate=0.8)
    assert settings(ours, model) == settings(theirs, model)
    # The stem, 14 blocks, and the head; each with and without weight decay.
    rates = sorted({lr for lr, _ in settings(ours, model).values()})
    assert rates == pytest.approx([1e-3 * 0.8**n for n in range(15, -1, -1)])
    assert settings(ours, model)['backbone.stages.0.blocks.1.mixer.in_proj.weight'][0] == rates[2]
    assert len(ours.param_groups) == 32


def test_backbone_that_does_not_count_its_layers():
    cfg = load(PICO['classifier'])
    with pytest.raises(InputError, match=r'layer_decay_rate needs a backbone .* NoneType of'):
        optimizer_of(cfg, torch.nn.Linear(2, 2), layer_decay_rate=0.9)


PARAMWISE = dict(norm_decay_mult=0.0, custom_keys={'net.4': dict(lr_mult=0.1)})
DECAY = {'optim_wrapper.paramwise_cfg': PARAMWISE, 'optim_wrapper.optimizer.weight_decay': 0.05}


def test_fused_is_for_the_machine_to_say_and_not_for_the_checkpoint(tmp_path):
    grouped = {**DECAY, 'optim_wrapper.constructor': GROUPED}
    run(tmp_path, 8, **grouped, **{'optim_wrapper.optimizer.fused': False})
    runner = toy_runner(tmp_path, resume=True, **grouped)
    runner.train()
    assert {group['fused'] for group in runner.optim_wrapper.optimizer.param_groups} == {True}


def test_state_of_another_optimizer_is_refused(tmp_path):
    run(tmp_path, 8, **DECAY)
    grouped = {'optim_wrapper.constructor': GROUPED}
    with pytest.raises(InputError, match=r'6 groups of 6 parameters, .* 3 of 6; .*optim_wrapper.*load_from='):
        toy_runner(tmp_path, resume=True, **DECAY, **grouped).train()
    sgd = {'optim_wrapper.optimizer': dict(type='SGD', lr=1e-3, weight_decay=0.05)}
    with pytest.raises(InputError, match=r'has no momentum.* as SGD .*optim_wrapper.*load_from='):
        toy_runner(tmp_path, resume=True, **DECAY, **sgd).train()
