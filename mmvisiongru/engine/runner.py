"""A Runner whose checkpoints are whole, whose samples are checked, and which resumes exactly.

``runner_type = 'mmvisiongru.ReliableRunner'`` in a config selects it; the hooks of `mmvisiongru.engine.hooks`
do the rest.
"""

import os
import os.path as osp
from contextlib import contextmanager
from functools import partial

import torch
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn

from mmvisiongru.checkpoint import Checkpoint, data_only, find_checkpoint, pretrained
from mmvisiongru.engine.compiled import CompiledParts
from mmvisiongru.engine.guarded_dataset import GuardedDataset
from mmvisiongru.engine.optim import accept_state, all_schedulers, single_wrappers
from mmvisiongru.engine.resume import ResumableEpochLoop, Schedules, build_numbered_sampler
from mmvisiongru.engine.terminal import silence, summary
from mmvisiongru.files import is_local, new_file
from mmvisiongru.models.layers.pooling import replace_pools
from mmvisiongru.models.layers.precision import converted_once, score_in_float32
from mmvisiongru.registry import RUNNERS

# How a config names the loop that the one below takes the place of.
EPOCH_LOOPS = ('EpochBasedTrainLoop', 'mmengine.EpochBasedTrainLoop', EpochBasedTrainLoop)


@RUNNERS.register_module()
class ReliableRunner(Runner):
    """mmengine's Runner with checkpoints in one step, checked samples and an exact place to resume.

    Reads keys of the config besides those of Runner: ``max_bad_samples`` (default 0), how many training
    samples may be passed over; ``resume_schedule``, whether a run that is resumed to another length follows
    the schedule of the 'checkpoint' or of the 'config'; ``env_cfg.tf32``, whether products of float32 may be
    rounded to TF32 on a GPU; ``channels_last``, whether the weights of convolutions lie in that order; and,
    in ``tools/train.py``, ``load_coverage``. ``compile`` compiles what training calls of the model's parts,
    see :class:`CompiledParts`, and not ``train_step`` as a whole.
    """

    # A checkpoint that has been read already; load_checkpoint() takes it and does not read the file again.
    loaded: Checkpoint | None = None
    # Nothing, unless the config says ``compile`` and training has begun.
    _compiled: CompiledParts | None = None

    def train(self):
        """Train. Whatever way it ends, the hooks restore the process."""
        with self._restoring():
            return super().train()

    def val(self):
        """Validate, likewise."""
        with self._restoring():
            return super().val()

    def test(self):
        """Test, likewise.

        In mixed precision weights are converted once, and the scores of a segmentor's classes are in float32.
        """
        with self._restoring(), converted_once():
            if getattr(self.test_loop, 'fp16', False):
                score_in_float32(self.model)
            return super().test()

    def setup_env(self, env_cfg: dict) -> None:
        """Set up what the processes share, and how exact a GPU multiplies."""
        super().setup_env(env_cfg)
        # Left alone where nothing is said: an environment variable or another library may have set it.
        if torch.cuda.is_available() and 'tf32' in env_cfg:
            torch.set_float32_matmul_precision('high' if env_cfg['tf32'] else 'highest')
            # Convolutions have a switch of their own, which is on from the start.
            torch.backends.cudnn.allow_tf32 = bool(env_cfg['tf32'])

    def wrap_model(self, model_wrapper_cfg, model: nn.Module):
        """Wrap the model, with the weights in the order that the config asks for.

        ``randomness.deterministic`` replaces adaptive average poolings, which PyTorch has no deterministic
        gradient for on a GPU.
        """
        if self.deterministic:
            replace_pools(model)
        if self.cfg.get('channels_last'):
            model = model.to(memory_format=torch.channels_last)
        return super().wrap_model(model_wrapper_cfg, model)

    def _maybe_compile(self, target: str) -> None:
        """Compile the parts of the model, for what is around them cannot be one graph."""
        settings = self.cfg.get('compile', False)
        if settings is None or settings is False:
            return
        model = self.model.module if is_model_wrapper(self.model) else self.model
        self._compiled = CompiledParts(model, {} if settings is True else dict(settings))
        names = ', '.join(self._compiled.parts)
        self.logger.info(f'compiled for training: {names}; the first iterations take longer')

    @contextmanager
    def _restoring(self):
        try:
            yield
        finally:
            self.call_hook('restore')
            if self._compiled:
                self._compiled.undo()

    def scale_lr(self, optim_wrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale the lr by the samples of an optimizer step, over all processes and accumulated iterations."""
        if not (auto_scale_lr or {}).get('enable'):
            return
        if all_schedulers(self.param_schedulers):
            raise RuntimeError('the lr must be scaled before the schedulers are built')
        base, batch_size = auto_scale_lr['base_batch_size'], self.train_dataloader.batch_size
        for wrapper in single_wrappers(optim_wrapper):
            # What a loss is divided by before training begins.
            counts = round(1 / float(wrapper.scale_loss(torch.ones(()))))
            samples = batch_size * self.world_size * counts
            self.logger.info(f'lr x {samples / base:g}: {samples} samples a step, base_batch_size={base}')
            for group in wrapper.param_groups:
                group['lr'] *= samples / base

    def build_logger(self, *args, **kwargs):
        """Build the logger; until training, validation or test begins, its file takes what is no warning."""
        logger = super().build_logger(*args, **kwargs)
        self.silenced = silence(logger)
        return logger

    def build_train_loop(self, loop):
        """Build the loop over checked samples, numbered so that it can be resumed at any of them."""
        if isinstance(loop, BaseLoop):
            return loop
        self._train_dataloader = self._guard(self._train_dataloader, self.cfg.get('max_bad_samples', 0))
        if isinstance(loop, dict) and (loop.get('by_epoch') or loop.get('type') in EPOCH_LOOPS):
            arguments = {k: v for k, v in loop.items() if k not in ('by_epoch', 'type')}
            # Both are for mmengine to refuse.
            if len(arguments) == len(loop) - 1:
                loop = dict(type=ResumableEpochLoop, **arguments)
        loop = super().build_train_loop(loop)
        loop.dataloader.worker_init_fn = partial(_init_worker, loop.dataloader.worker_init_fn)
        return loop

    def build_val_loop(self, loop):
        """Build the loop over checked samples."""
        self._val_dataloader = self._guard(self._val_dataloader)
        return super().build_val_loop(loop)

    def build_test_loop(self, loop):
        """Build the loop over checked samples."""
        self._test_dataloader = self._guard(self._test_dataloader)
        return super().build_test_loop(loop)

    def _guard(self, dataloader, max_bad_samples: int | None = None):
        if not isinstance(dataloader, dict) or not isinstance(dataloader.get('dataset'), dict):
            return dataloader
        if dataloader['dataset'].get('type') is GuardedDataset:
            return dataloader
        guarded = dict(
            type=GuardedDataset,
            dataset=dataloader['dataset'],
            seed=self.seed,
            max_bad_samples=max_bad_samples,
        )
        dataloader = dict(dataloader, dataset=guarded)
        if isinstance(dataloader.get('sampler'), dict):
            dataloader['sampler'] = dict(type=build_numbered_sampler, sampler=dataloader['sampler'])
        return dataloader

    def load_or_resume(self) -> None:
        """Load or resume; resuming without a path goes on from the newest whole checkpoint."""
        if self._resume and self._load_from is None:
            self.loaded, notes = find_checkpoint(self.work_dir)
            for note in notes:
                self.logger.warning(note)
            self._resume = self.loaded is not None
            self._load_from = self.loaded.path if self.loaded else None
        # The last step before a loop runs, of training, validation and test.
        for handler, level in self.silenced:
            handler.setLevel(level)
        for line in summary(self):
            self.logger.info(line)
        super().load_or_resume()

    def resume(self, filename, *args, **kwargs) -> None:
        """Resume; ``resume_schedule`` says what to do if the checkpoint's schedule has another length."""
        wrappers = single_wrappers(self.optim_wrapper)
        accept = partial(accept_state, filename)
        handles = [w.optimizer.register_load_state_dict_pre_hook(accept) for w in wrappers]
        schedules = Schedules(self)
        super().resume(filename, *args, **kwargs)
        for handle in handles:
            handle.remove()
        loop = self.train_loop
        note = loop.resume_at(self.position) if isinstance(loop, ResumableEpochLoop) else None
        if note:
            self.logger.warning(note)
        schedules.settle(filename)

    def _init_model_weights(self) -> None:
        """Initialise the model; a checkpoint of an ``init_cfg`` must fit and holds data only."""
        with pretrained(self.model):
            super()._init_model_weights()

    def load_checkpoint(self, filename, *args, **kwargs):
        """Load a checkpoint that is complete and holds data only."""
        known = [self.loaded] if self.loaded and self.loaded.path == filename else []
        self.loaded = None
        with data_only(*known):
            checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        self.position = checkpoint.get('meta', {}).get('position')
        return checkpoint

    def save_checkpoint(
        self, out_dir, filename, file_client_args=None, *args, meta=None, backend_args=None, **kwargs
    ):
        """Save a checkpoint in one step; on other storage than local files, as mmengine does."""
        meta = {} if meta is None else meta
        if isinstance(self.train_loop, ResumableEpochLoop) and 'epoch' in meta:
            meta['position'] = self.train_loop.position(meta['epoch'], meta['iter'])
        settings = dict(kwargs, meta=meta, backend_args=backend_args)
        if not is_local(out_dir, backend_args or file_client_args):
            return super().save_checkpoint(out_dir, filename, file_client_args, *args, **settings)
        if is_main_process():
            with new_file(osp.join(out_dir, filename)) as unfinished:
                name = osp.basename(unfinished)
                super().save_checkpoint(out_dir, name, file_client_args, *args, **settings)


def _init_worker(init, worker_id: int) -> None:
    """Keep signals for the whole process group, such as Ctrl-C, from the workers: the run still needs them.

    A worker ends by itself when its parent is gone.
    """
    if init is not None:
        init(worker_id)
    os.setpgid(0, 0)
