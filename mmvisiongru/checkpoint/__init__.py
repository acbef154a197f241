"""Read checkpoints safely, check that they are complete, and match them with models."""

from .load import (
    Checkpoint,
    check_file,
    data_only,
    load_checkpoint_file,
    read_checkpoint,
    refuse_pickled_code,
    state_dict_of,
)
from .match import check_weights, load_weights, plain_model, pretrained, unfit_keys
from .plain import to_plain
from .published import SCHEME, published_weights, weights_hash
from .resume import find_checkpoint

__all__ = [
    'SCHEME', 'Checkpoint', 'check_file', 'check_weights', 'data_only', 'find_checkpoint',
    'load_checkpoint_file', 'load_weights', 'plain_model', 'pretrained', 'published_weights',
    'read_checkpoint', 'refuse_pickled_code', 'state_dict_of', 'to_plain', 'unfit_keys', 'weights_hash',
]  # fmt: skip
