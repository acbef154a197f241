"""A Runner whose checkpoints are complete, whose samples are checked, and which resumes exactly.

``runner_type = 'mmvisiongru.ReliableRunner'`` in a config selects it.
"""

import logging
import os.path as osp
from contextlib import contextmanager, nullcontext

import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from mmvisiongru._compat import built_loops
from mmvisiongru.checkpoint.load import Checkpoint, data_only, read_checkpoint
from mmvisiongru.checkpoint.match import check_weights, plain_model, pretrained
from mmvisiongru.checkpoint.resume import find_checkpoint
from mmvisiongru.engine.compiled import compile_parts
from mmvisiongru.engine.guarded_dataset import GuardedDataset
from mmvisiongru.engine.optim import single_wrappers
from mmvisiongru.engine.resume import NumberedSampler, ResumableEpochLoop, resuming
from mmvisiongru.engine.signals import protect_workers
from mmvisiongru.engine.summary import summary
from mmvisiongru.errors import InputError
from mmvisiongru.files import is_local, new_file
from mmvisiongru.models.layers.pooling import replace_pools
from mmvisiongru.models.layers.precision import converted_once, scores_in_float32
from mmvisiongru.registry import RUNNERS


@RUNNERS.register_module()
class ReliableRunner(Runner):
    """mmengine's Runner with complete checkpoints, checked samples and an exact position to resume at.

    Keys of the config besides those of Runner: ``max_bad_samples`` (default 0), number of training samples
    that may be skipped; ``resume_schedule``, whether a resumed run follows the lr, weight decay and
    schedule of the 'checkpoint' or of the 'config'; ``env_cfg.tf32``, whether products of float32 may be
    rounded to TF32 on a GPU; ``channels_last``, memory format of convolutions; ``compile``, settings of
    ``torch.compile`` for the parts of the model, see :func:`compile_parts`; ``load_coverage`` (default 1.0),
    the share of the model's weights that a checkpoint of ``load_from`` must have.
    """

    # Read already, for load_checkpoint(), which mmengine calls once.
    loaded: Checkpoint | None = None
    looked = False
    # Bad samples that a dataloader may skip; None in an evaluation.
    may_skip: int | None = None
    # Parts of the model whose forward is compiled at present, each with its own.
    compiled: dict[str, tuple] | None = None

    def train(self):
        """Train, and restore the process however that ends."""
        with self._restoring():
            return super().train()

    def val(self):
        """Validate, and restore the process however that ends."""
        with self._restoring():
            return super().val()

    def test(self):
        """Test, and restore the process. Mixed precision converts weights once and scores in float32."""
        with self._restoring(), converted_once():
            fp16 = getattr(self.test_loop, 'fp16', False)
            with scores_in_float32(self.model) if fp16 else nullcontext():
                return super().test()

    def setup_env(self, env_cfg: dict) -> None:
        """Set up the processes, and the precision of float32 on a GPU."""
        super().setup_env(env_cfg)
        # Unless the config sets it, an environment variable or another library may have.
        if torch.cuda.is_available() and 'tf32' in env_cfg:
            torch.set_float32_matmul_precision('high' if env_cfg['tf32'] else 'highest')
            # Convolutions have their own switch, which is on by default.
            torch.backends.cudnn.allow_tf32 = bool(env_cfg['tf32'])

    def wrap_model(self, model_wrapper_cfg, model: nn.Module):
        """Wrap the model, with the memory format and the deterministic poolings that the config sets."""
        if self.deterministic:
            # PyTorch has no deterministic gradient of adaptive average pooling on a GPU.
            replace_pools(model)
        if self.cfg.get('channels_last'):
            model = model.to(memory_format=torch.channels_last)
        return super().wrap_model(model_wrapper_cfg, model)

    def _maybe_compile(self, target: str) -> None:
        """Compile the parts of the model: with what is around them, they would not be one graph."""
        if (settings := self.cfg.get('compile')) in (None, False):
            return
        self.compiled = compile_parts(plain_model(self.model), {} if settings is True else dict(settings))
        self.logger.info(f'compiled: {", ".join(self.compiled)}; the first iterations take longer')

    @contextmanager
    def _restoring(self):
        try:
            yield
        except Exception:
            self.call_hook('after_failure')
            raise
        finally:
            self.call_hook('restore')
            # A copy of the model would call the parts of this one. A forward that somebody replaced stays.
            while self.compiled:
                part, eager = self.compiled.popitem()[1]
                del part.forward
                if eager != part.forward:
                    part.forward = eager

    def scale_lr(self, optim_wrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale the lr by the samples of an optimizer step, over all processes and accumulated iterations."""
        if not (auto_scale_lr or {}).get('enable'):
            return
        if not (base := auto_scale_lr.get('base_batch_size')):
            raise InputError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size in {self.cfg.filename}')
        for wrapper in single_wrappers(optim_wrapper):
            # Before training begins, a loss is divided by the number of accumulated iterations.
            counts = round(1 / float(wrapper.scale_loss(torch.ones(()))))
            samples = self.train_dataloader.batch_sampler.batch_size * self.world_size * counts
            self.logger.info(f'lr x {samples / base:g}: {samples} samples a step, base_batch_size={base}')
            for group in wrapper.param_groups:
                group['lr'] *= samples / base

    def build_logger(self, *args, **kwargs):
        """Build the logger. Until a loop runs, the terminal shows warnings only."""
        logger = super().build_logger(*args, **kwargs)
        self.silenced = [(h, h.level) for h in logger.handlers if not isinstance(h, logging.FileHandler)]
        for handler, level in self.silenced:
            handler.setLevel(max(level, logging.WARNING))
        return logger

    def build_train_loop(self, loop):
        """Build the loop. A loop by epochs can be resumed at any iteration."""
        self.may_skip = self.cfg.get('max_bad_samples', 0)
        loop = super().build_train_loop(loop)
        self.may_skip = None
        # Recognised after it is built, because configs name it in several ways.
        if type(loop) is EpochBasedTrainLoop:
            loop.__class__ = ResumableEpochLoop
        return loop

    def build_dataloader(self, dataloader, *args, **kwargs):
        """Build a dataloader over checked samples, numbered so that a run can be resumed at any of them."""
        if isinstance(dataloader, dict) and isinstance(dataloader.get('dataset'), dict):
            guard = dict(type=GuardedDataset, seed=self.seed, max_bad_samples=self.may_skip)
            dataloader = dict(dataloader, dataset=dict(guard, dataset=dataloader['dataset']))
            if isinstance(dataloader.get('sampler'), dict):
                dataloader['sampler'] = dict(type=NumberedSampler, sampler=dataloader['sampler'])
        loader = super().build_dataloader(dataloader, *args, **kwargs)
        protect_workers(loader)
        return loader

    def load_or_resume(self) -> None:
        """Read the checkpoint to load or resume, if any, and compare it with the model before a loop runs."""
        notes, self.looked = [] if self.looked else self._read_checkpoint(), True
        if len(found := {*all_gather_object(self.loaded and osp.basename(self.loaded.path))}) > 1:
            raise InputError(f'the processes found {found}: {self.work_dir} must be the same for all of them')
        for handler, level in self.silenced:
            handler.setLevel(level)
        for note in notes:
            self.logger.warning(note)
        for line in summary(self):
            self.logger.info(line)
        super().load_or_resume()

    def _read_checkpoint(self) -> list[str]:
        """Read what ``resume`` and ``load_from`` ask for. Returns what to log.

        ``resume='auto'`` takes the newest checkpoint in the work dir, and ``load_from`` if there is none.
        """
        if (choice := self.cfg.get('resume_schedule')) not in (None, 'checkpoint', 'config'):
            raise InputError(f"resume_schedule={choice!r} must be 'checkpoint' or 'config'")
        notes, resume = [], self._resume
        if resume == 'auto' or (resume and not self._load_from):
            self.loaded, notes = find_checkpoint(self.work_dir)
            if notes and not self.loaded:
                raise InputError(f'no complete checkpoint in {self.work_dir}; move away what was {notes[0]}')
            if not self.loaded:
                notes, resume = [f'nothing to resume in {self.work_dir}; training starts afresh'], False
        if self._load_from and not self.loaded:
            self.loaded = read_checkpoint(self._load_from, resume=bool(resume))
        self._resume = bool(resume)
        if not self.loaded:
            return notes
        self._load_from = self.loaded.path
        starts = 'train' in built_loops(self) and not resume
        coverage, setting = (self.cfg.get('load_coverage', 1.0), 'load_from') if starts else (None, '')
        unfit = check_weights(self.model, self.loaded, coverage, setting)
        return [*notes, *(f'of {self._load_from}, not loaded: {line}' for line in unfit)]

    def resume(self, filename, *args, **kwargs) -> None:
        """Resume, where the checkpoint is in the data and with the schedule of ``resume_schedule``."""
        with resuming(self, filename):
            super().resume(filename, *args, **kwargs)

    def _init_model_weights(self) -> None:
        """Initialise the model; a checkpoint of an ``init_cfg`` must fit and holds data only."""
        with pretrained(self.model):
            super()._init_model_weights()

    def load_checkpoint(self, filename, *args, **kwargs):
        """Load a checkpoint that is complete and holds data only."""
        known, self.loaded = [self.loaded] if self.loaded else [], None
        with data_only(*known):
            checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        meta = checkpoint.get('meta', {})
        # mmengine would run this text as a program on resuming.
        meta.pop('config', None)
        self.position, self.validated = meta.get('position'), meta.get('validated', False)
        schedulers = checkpoint.get('param_schedulers', ())
        lists = schedulers.values() if isinstance(schedulers, dict) else [schedulers]
        self.saved_schedulers = sum(map(len, lists))
        return checkpoint

    def save_checkpoint(self, out_dir, filename, *args, meta=None, backend_args=None, **kwargs) -> None:
        """Save a checkpoint in one step; on other storage than local files, as mmengine does."""
        meta = {} if meta is None else meta
        if isinstance(self.train_loop, ResumableEpochLoop) and 'epoch' in meta:
            meta['position'] = self.train_loop.position(meta['epoch'], meta['iter'])
        settings = dict(kwargs, meta=meta, backend_args=backend_args)
        if not is_local(out_dir, backend_args):
            super().save_checkpoint(out_dir, filename, *args, **settings)
        elif is_main_process():
            with new_file(osp.join(out_dir, filename)) as unfinished:
                super().save_checkpoint(out_dir, osp.basename(unfinished), *args, **settings)
