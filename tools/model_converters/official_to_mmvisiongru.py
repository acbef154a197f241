"""Convert released weights of VisionGRU and Vision-RWKV to this package's names, and back.

    python tools/model_converters/official_to_mmvisiongru.py released.pth visiongru-tiny.pth
    python tools/model_converters/official_to_mmvisiongru.py --reverse visiongru-tiny.pth released.pth

The result serves mmpretrain as `load_from` and mmseg as
`init_cfg=dict(type='Pretrained', checkpoint='visiongru-tiny.pth', prefix='backbone.')`. The keys tell which
of the two models it is. Those of Vision-RWKV are checked and kept, but for the head of VRWKV-L.
"""

import argparse
import hashlib
from pathlib import Path

import torch

from mmvisiongru.checkpoint import load_checkpoint_file
from mmvisiongru.errors import InputError
from mmvisiongru.files import new_file
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.models.convert import arch_of, first, name_of, to_mmvisiongru, to_released

# Where training scripts put the weights in a checkpoint; without any of these the file is the weights.
CONTAINERS = ('model', 'state_dict', 'model_ema')


def read_weights(path, key=None):
    """The state dict in a checkpoint file.

    Raises:
        InputError: There is none, or there are several and ``key`` does not say which.
    """
    # The options of the training script, which checkpoints often keep, are plain data.
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = load_checkpoint_file(path)
    if not isinstance(checkpoint, dict):
        raise InputError(f'{path} holds a {type(checkpoint).__name__}, not a state dict')
    found = [c for c in CONTAINERS if isinstance(checkpoint.get(c), dict)]
    if len(found) > 1 and not key:
        raise InputError(f'{path} holds weights under {" and ".join(found)}; choose with --key')
    if key and key not in found:
        raise InputError(f'{path} holds no weights under {key}, but {" and ".join(found) or "at its top"}')
    state = checkpoint[key or found[0]] if found else checkpoint
    odd = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise InputError(f'{path}: {len(odd)} entries are not tensors, first {first(odd)}')
    return state


def describe(state, source):
    """What a converted checkpoint says of itself: architecture and origin."""
    arch = arch_of(state)
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return dict(arch=name_of(state) or arch, **arch, source=Path(source).name, sha256=digest)


def convert_file(src, dst, *, reverse=False, key=None, force=False):
    """Read ``src``, write ``dst``; see the options of the same names.

    Returns:
        int: Number of tensors read.
    Raises:
        InputError: ``src`` is not what it should be, or ``dst`` cannot be written.
    """
    if dst.exists() and not force:
        raise InputError(f'{dst} exists already; --force overwrites it')
    if not dst.parent.is_dir():
        raise InputError(f'{dst.parent} is not a directory')
    state = read_weights(src, key)
    try:
        converted = to_released(state) if reverse else to_mmvisiongru(state)
        if not reverse:
            converted = dict(state_dict=converted, meta=describe(converted, src))
    except InputError as error:
        raise InputError(f'{src}: {error}') from error
    with new_file(str(dst)) as unfinished:
        torch.save(converted, unfinished)
    return len(state)


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('src', type=Path, help='released checkpoint (one of ours with --reverse)')
    parser.add_argument('dst', type=Path, help='file to write')
    parser.add_argument('--reverse', action='store_true', help='from our names to the released ones')
    parser.add_argument('--key', help='part of SRC with the weights if it has several, e.g. model_ema')
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    return parser.parse_args(argv)


def main(argv=None):
    """Convert one file."""
    args = parse_args(argv)
    with one_line_errors():
        count = convert_file(args.src, args.dst, reverse=args.reverse, key=args.key, force=args.force)
    print(f'{args.dst}: {count} tensors of {args.src} converted')


if __name__ == '__main__':
    main()
