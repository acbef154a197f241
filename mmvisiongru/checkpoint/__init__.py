"""Checkpoints: read without running what is in them, whole, and fitting the model."""

from .load import load_checkpoint_file, refuse_code_in, refuse_pickled_code
from .match import check_weights, load_weights, read_weights, state_dict_of, unfit_keys
from .pretrained import check_all_pretrained, check_pretrained, pretrained_paths
from .resume import find_checkpoint
from .seal import check_whole, read_seal, seal

__all__ = [
    'check_all_pretrained',
    'check_pretrained',
    'check_weights',
    'check_whole',
    'find_checkpoint',
    'load_checkpoint_file',
    'load_weights',
    'pretrained_paths',
    'read_seal',
    'read_weights',
    'refuse_code_in',
    'refuse_pickled_code',
    'seal',
    'state_dict_of',
    'unfit_keys',
]
