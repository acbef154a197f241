"""The processes that torchrun starts: `tools/dist_train.sh CONFIG GPUS`. The CPU takes gloo."""

_base_ = 'none.py'

launcher = 'pytorch'
