"""Describe, check or measure this machine.

python -m mmvisiongru                     one page to paste into an issue
python -m mmvisiongru --check [--small]   compare all backends with float64; exit status 1 if one is wrong
python -m mmvisiongru --bench             time operators and models; --minutes N, --json FILE
"""

import argparse
import os.path as osp
import sys
import time


def main(argv=None) -> None:
    """Run one of the three, which imports only what it needs."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser('python -m mmvisiongru', description=__doc__.splitlines()[0])
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument('--check', action='store_true', help='compare all backends with float64')
    parser.add_argument('--small', action='store_true', help='check short sequences only')
    parts.add_argument('--bench', action='store_true', help='time operators and models')
    parser.add_argument('--minutes', type=float, default=5, metavar='N', help='limit of --bench (default: 5)')
    parser.add_argument('--json', metavar='FILE', help='write the figures of --bench to this file')
    args = parser.parse_args(argv)
    if args.json and not osp.isdir(folder := osp.dirname(args.json) or '.'):
        parser.error(f'--json {args.json}: there is no folder {folder}')
    if args.check:
        from mmvisiongru.selfcheck.check import check

        sys.exit(not check(args.small))
    elif args.bench:
        from mmvisiongru.selfcheck.bench import bench

        bench(args.minutes, args.json, start)
    else:
        from mmvisiongru.selfcheck.page import page

        print(page())


if __name__ == '__main__':
    main()
