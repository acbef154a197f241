"""Share of the mixers' output that is the same for every token of every image, before training.

    python experiments/tried/constant_share.py CONFIG... [--seeds 0 1 2] [--images 64]

Uses validation images of the first config. Prints a Markdown table of the share of the mean square that is a
constant of the channel: in the output of the mixers (mean over blocks) and in the mean over the last map.
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean

import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

# Configs import `experiments.tried`.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.config import get_config
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.models.layers import MinGRU2D
from mmvisiongru.zoo import build_model


def constant_share(x: Tensor) -> float:
    """Share of the mean square of (..., C) that is due to the mean over all axes but C."""
    x = x.flatten(0, -2).double()
    return float(x.mean(0).square().mean() / x.square().mean())


@torch.no_grad()
def shares(backbone: nn.Module, images: Tensor) -> tuple[float, float]:
    """Constant share of the mixers' output, mean over blocks, and of the mean over the last map."""
    added = []
    handles = [
        module.register_forward_hook(lambda _, __, out: added.append(constant_share(out)))
        for module in backbone.modules()
        if isinstance(module, MinGRU2D)
    ]
    features = backbone(images)[-1].mean((2, 3))
    for handle in handles:
        handle.remove()
    return fmean(added), constant_share(features)


def validation_images(config: str, number: int) -> Tensor:
    """The first images of the shuffled validation data, preprocessed, (N, 3, H, W)."""
    cfg = get_config(config, required=('model', 'val_dataloader'))
    loader = dict(cfg.val_dataloader, batch_size=number, num_workers=0, persistent_workers=False)
    loader['sampler'] = dict(type='DefaultSampler', shuffle=True)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
        return build_model(config).data_preprocessor(batch)['inputs']


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--images', type=int, default=64)
    args = parser.parse_args()
    images = validation_images(args.configs[0], args.images)
    print('| config | added by mixers | mean of the last map |', '|---|---|---|', sep='\n')
    for config in args.configs:
        found = []
        for seed in args.seeds:
            torch.manual_seed(seed)
            found.append(shares(build_model(config).backbone.eval(), images))
        mixers, features = map(fmean, zip(*found, strict=True))
        print(f'| {config.split("/")[-1].removesuffix(".py")} | {mixers:.2f} | {features:.2f} |', flush=True)


if __name__ == '__main__':
    with one_line_errors():
        main()
