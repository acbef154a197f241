"""A checkpoint hook that leaves at least one complete checkpoint at any moment."""

import os
import os.path as osp

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook

from mmvisiongru.checkpoint import to_plain
from mmvisiongru.engine.optim import is_accumulating
from mmvisiongru.files import check_folder, is_local, lock_folder, write_text
from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which saves a new file before it deletes the old ones.

    It refuses a folder that another training writes to. Its files hold tensors and built-in types only, so
    that ``torch.load(path, weights_only=True)`` reads them. It needs a runner that writes a file in one step:
    ``runner_type='mmvisiongru.ReliableRunner'``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # mmengine keeps what it does not know and fails at the first save.
        if self.args:
            raise TypeError(f'unexpected argument {", ".join(map(repr, self.args))}')
        # Iterations of the last checkpoint.
        self.locks, self.overdue, self.saved = [], False, None

    def before_train(self, runner) -> None:
        """Fail now if the folder cannot be written or another training writes to it."""
        super().before_train(runner)
        # A run that continues in a copied folder must not delete the best file of the original.
        if getattr(self, 'best_ckpt_path', None):
            self.best_ckpt_path = self._in_out_dir(self.best_ckpt_path)
        for metric, path in getattr(self, 'best_ckpt_path_dict', {}).items():
            self.best_ckpt_path_dict[metric] = path and self._in_out_dir(path)
        if is_main_process():
            local = is_local(self.out_dir, self.backend_args or self.file_client_args)
            for folder in {runner.work_dir, *([self.out_dir] if local else [])}:
                check_folder(folder)
                self.locks.append(lock_folder(folder))

    def restore(self, runner) -> None:
        """Let other processes train in the folder."""
        for lock in self.locks:
            if lock is not None:
                os.close(lock)
        self.locks = []

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Replace what only mmengine and numpy can read."""
        states = {name for name in checkpoint if name.endswith('state_dict')}
        checkpoint.update({name: to_plain(checkpoint[name]) for name in checkpoint.keys() - states})

    def _in_out_dir(self, path: str) -> str:
        return self.file_backend.join_path(self.out_dir, osp.basename(path))

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Save what is due, now or since an earlier iteration."""
        super().after_train_iter(runner, *args, **kwargs)
        if self.overdue and not is_accumulating(runner.optim_wrapper):
            done = runner.iter + 1
            step = runner.epoch if self.by_epoch else done
            self._save_checkpoint_with_step(runner, step, meta=dict(epoch=runner.epoch, iter=done))

    def _save_checkpoint_with_step(self, runner, step, meta):
        """Save as mmengine does, in an order that leaves a complete checkpoint wherever it is cut off."""
        self.overdue = is_accumulating(runner.optim_wrapper)
        if self.overdue:
            # A checkpoint holds no accumulated gradient.
            return
        kept = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        if self.max_keep_ckpts > 0 and step not in kept:
            kept.append(step)
            # Includes those about to be deleted: if this run is killed before, it deletes them on resuming.
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

    def save_stopped(self, runner, done: int) -> str:
        """Save the state after so many iterations, wherever in an epoch that is. Returns the file."""
        if self.saved == done:
            return self.last_ckpt
        meta = dict(epoch=runner.epoch, iter=done)
        if not self.by_epoch:
            self._save_checkpoint_with_step(runner, done, meta)
        else:
            # The next checkpoint replaces it.
            name, info = f'iter_{done}.pth', runner.message_hub.runtime_info
            outdated = info.get('stopped_ckpt', name)
            runner.message_hub.update_info('stopped_ckpt', name)
            self._save(runner, name, meta)
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
        self.saved = meta['iter']

    def _save_best_checkpoint(self, runner, metrics) -> None:
        # Nothing was trained that could be the best.
        if not hasattr(self, 'file_backend'):
            return
        several = getattr(self, 'best_ckpt_path_dict', None)
        old = {None: getattr(self, 'best_ckpt_path', None)} if several is None else dict(several)
        # Hidden from mmengine, which deletes the old file before it saves the new one.
        self._set_best(dict.fromkeys(old))
        super()._save_best_checkpoint(runner, metrics)
        new = {None: self.best_ckpt_path} if several is None else several
        for path in [path for key, path in old.items() if path and new[key] not in (None, path)]:
            self._remove(path)
        self._set_best({key: new[key] or path for key, path in old.items()})

    def _set_best(self, paths: dict) -> None:
        if None in paths:
            self.best_ckpt_path = paths[None]
        else:
            self.best_ckpt_path_dict.update(paths)

    def _remove(self, path: str) -> None:
        if not is_main_process():
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)
