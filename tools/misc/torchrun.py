"""torch.distributed.run that ends with the exit code of its processes, and without its own traceback.

python tools/misc/torchrun.py [OPTIONS OF torchrun] SCRIPT [ARGS]
"""

import logging
import os
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

if __name__ == '__main__':
    # The table of ChildFailedError says the same in full.
    logging.getLogger('torch.distributed.elastic.multiprocessing.api').setLevel(logging.CRITICAL)
    # What torchrun sets, without its banner.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    try:
        # It returns after --help, too.
        sys.exit(run.main(sys.argv[1:]))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        # A script that exits with 2, or with 128 + a signal that asked it to stop, has printed why.
        if code != 2 and code < 128:
            print(error, file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)
    # By now the processes have got the signal too, and half a minute to save.
    except SignalException as error:
        sys.exit(128 + error.sigval)
