"""Checkpoints of which at least one is whole at any moment."""

import os.path as osp
from contextlib import contextmanager

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook

from mmvisiongru.files import check_folder, is_local, remove_unfinished, write_text
from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook; what a new file replaces is removed after that file is whole.

    Needs ``runner_type='mmvisiongru.ReliableRunner'``, which writes the files in one step.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # mmengine keeps what it does not know and fails at the first save.
        if self.args:
            raise TypeError(f'unexpected argument {", ".join(map(repr, self.args))}')

    def before_train(self, runner) -> None:
        """Find out now whether the folder can be written, and clear what a killed run was writing."""
        super().before_train(runner)
        # A run that goes on in a copied folder must not remove the best file of the one it came from.
        if getattr(self, 'best_ckpt_path', None):
            self.best_ckpt_path = self._in_out_dir(self.best_ckpt_path)
        for metric, path in getattr(self, 'best_ckpt_path_dict', {}).items():
            self.best_ckpt_path_dict[metric] = path and self._in_out_dir(path)
        if is_main_process() and is_local(self.out_dir, self.backend_args or self.file_client_args):
            check_folder(self.out_dir)
            remove_unfinished(self.out_dir, '.pth')

    def _in_out_dir(self, path: str) -> str:
        return self.file_backend.join_path(self.out_dir, osp.basename(path))

    def _save_checkpoint_with_step(self, runner, step, meta):
        """As mmengine's, in an order that leaves a whole checkpoint wherever it is cut off."""
        kept = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        if self.max_keep_ckpts > 0 and step not in kept:
            kept.append(step)
            # With those about to be removed: a run killed before that removes them when it resumes.
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))
        outdated = [self.filename_tmpl.format(s) for s in kept[: -self.max_keep_ckpts]]
        if 'stopped_ckpt' in runner.message_hub.runtime_info:
            outdated.append(runner.message_hub.pop_info('stopped_ckpt'))
        self._save(runner, self.filename_tmpl.format(step), meta)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
        for name in outdated:
            self._remove(self.file_backend.join_path(self.out_dir, name))

    def save_stopped(self, runner) -> str:
        """Save the state after the iteration just done, wherever in an epoch that is. Returns the file."""
        step = runner.iter + 1
        if not self.by_epoch:
            self._save_checkpoint_with_step(runner, step, meta=dict(epoch=runner.epoch, iter=step))
        else:
            # The next checkpoint replaces it.
            name, info = f'iter_{step}.pth', runner.message_hub.runtime_info
            outdated = info.get('stopped_ckpt', name)
            runner.message_hub.update_info('stopped_ckpt', name)
            self._save(runner, name, dict(epoch=runner.epoch, iter=step))
            if outdated != name:
                self._remove(self.file_backend.join_path(self.out_dir, outdated))
        return self.last_ckpt

    def _save(self, runner, filename: str, meta: dict) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
        )
        if is_main_process():
            write_text(osp.join(runner.work_dir, 'last_checkpoint'), self.last_ckpt)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        # Nothing was trained that could be the best.
        if not hasattr(self, 'file_backend'):
            return
        with self._removing_last() as outdated:
            super()._save_best_checkpoint(runner, metrics)
        best = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in outdated:
            if path not in best:
                self._remove(path)

    @contextmanager
    def _removing_last(self):
        """Put off the removal of files, which mmengine does before it saves."""
        backend, outdated = self.file_backend, []
        self.file_backend = _Keeping(backend, outdated)
        try:
            yield outdated
        finally:
            self.file_backend = backend

    def _remove(self, path: str) -> None:
        if not is_main_process():
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)


class _Keeping:
    """A file backend that only notes what it is told to remove."""

    def __init__(self, backend, outdated: list):
        self.backend, self.outdated = backend, outdated
        self.remove = self.rmtree = outdated.append

    def __getattr__(self, name):
        return getattr(self.backend, name)
