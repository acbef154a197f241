"""Time of a model over the time of its linear layers and convolutions alone.

    python benchmarks/linear_share.py configs/classification/vrwkv-small_8xb128_in1k.py --sizes 1024

Every nn.Linear and nn.Conv2d runs on a random input of its shape in the model, in the order of the model.
Runs are interleaved and medians are reported, so that the ratio holds on a busy machine, too.
"""

import argparse
import statistics
from copy import deepcopy
from functools import partial
from logging import ERROR

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmvisiongru import measure, optimize_for_inference
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.measure import inference
from mmvisiongru.zoo import build_model

LAYERS = (nn.Linear, nn.Conv2d)


def recorded_layers(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """The layers that an inference pass calls, in its order, each with a random input of its shape."""
    calls, inputs = [], {}

    def record(module, args):
        shape = tuple(args[0].shape)
        inputs.setdefault(shape, torch.randn(shape, dtype=args[0].dtype, device=args[0].device))
        calls.append((module, inputs[shape]))

    handles = [m.register_forward_pre_hook(record) for m in model.modules() if isinstance(m, LAYERS)]
    try:
        inference(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def run_layers(calls: list[tuple[nn.Module, Tensor]]) -> None:
    """Run the layers alone."""
    with torch.inference_mode():
        for layer, x in calls:
            layer(x)


def compare(model: nn.Module, x: Tensor, repeats: int) -> dict:
    """Seconds of the model and of its layers, medians of interleaved runs. The model stays as it is."""
    model = deepcopy(model)
    calls = recorded_layers(model, x)
    # In place: the layers run alone as they run in the model.
    optimize_for_inference(model)
    runs = dict(model=partial(inference, model, x), layers=partial(run_layers, calls))
    times = measure.interleaved_times(runs, x.device, repeats)
    found = {name: statistics.median(seconds) for name, seconds in times.items()}
    return dict(found, ratio=found['model'] / found['layers'])


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='+', help='as for tools/analysis_tools/benchmark.py')
    parser.add_argument('--sizes', nargs='+', type=int, default=[1024], help='sides of the square image')
    measure.add_device_option(parser)
    parser.add_argument('--repeats', type=int, default=7, help='timed runs of each after an untimed one')
    return parser.parse_args(argv)


def main(argv=None):
    """Measure and print one line per model and size."""
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level=ERROR)
    device = torch.device(args.device)
    print(measure.in_words(measure.describe_machine(device)))
    with one_line_errors():
        models = {name: build_model(name).to(device) for name in args.models}
    for name, model in models.items():
        for size in args.sizes:
            found = compare(model, torch.randn(1, 3, size, size, device=device), args.repeats)
            print(
                f'{name} at {size}: {1e3 * found["model"]:.1f} ms, linear layers and convolutions alone '
                f'{1e3 * found["layers"]:.1f} ms, ratio {found["ratio"]:.3f}'
            )


if __name__ == '__main__':
    main()
