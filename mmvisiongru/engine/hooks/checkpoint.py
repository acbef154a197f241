"""A checkpoint hook that leaves at least one complete checkpoint at any moment."""

import os
import os.path as osp

from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook

from mmvisiongru.checkpoint import to_plain
from mmvisiongru.engine.optim import is_accumulating
from mmvisiongru.errors import InputError, some
from mmvisiongru.files import check_folder, is_local, lock_folder, write_text
from mmvisiongru.registry import HOOKS

# File of a run by epochs that was stopped inside an epoch. The next checkpoint replaces it.
STOPPED = 'stopped.pth'


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which saves a new file before it deletes the old ones. For ReliableRunner.

    It refuses a folder that another training writes to. Its files hold tensors and built-in types only, so
    that ``torch.load(path, weights_only=True)`` reads them.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # mmengine keeps what it does not know and fails at the first save.
        if self.args:
            raise TypeError(f'unexpected argument {", ".join(map(repr, self.args))}')
        # Iterations of the last checkpoint and of the last validation.
        self.saved = self.validated = None
        self.locks, self.overdue, self.unreadable = [], False, set()

    def before_train(self, runner) -> None:
        """Fail now if another training writes to the folder, or if checkpoints could not be resumed."""
        if self.save_optimizer and not self.save_param_scheduler and runner.param_schedulers:
            raise InputError(
                'default_hooks.checkpoint.save_param_scheduler=False: a resumed run would begin its schedule '
                'anew; remove it, or set save_optimizer=False for files that are not resumed'
            )
        # The lock comes before mmengine deletes the files that are outdated for this run.
        self._lock(runner.work_dir)
        super().before_train(runner)
        if self.out_dir != runner.work_dir and is_local(self.out_dir, self.backend_args):
            self._lock(self.out_dir)

    @master_only
    def _lock(self, folder: str) -> None:
        check_folder(folder)
        self.locks.append(lock_folder(folder))

    def restore(self, runner) -> None:
        """Let other processes train in the folder."""
        for lock in self.locks:
            if lock is not None:
                os.close(lock)
        self.locks, self.saved, self.validated = [], None, None

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Replace or leave out what is no plain data; averages of the log begin anew on resuming."""
        checkpoint['message_hub']['log_scalars'], unreadable = {}, []
        others = {name: checkpoint.pop(name) for name in [*checkpoint] if not name.endswith('state_dict')}
        checkpoint.update(to_plain(others, 'checkpoint', unreadable))
        info, keys = (checkpoint['message_hub'][name] for name in ('runtime_info', 'resumed_keys'))
        checkpoint['message_hub']['resumed_keys'] = {key: keys[key] for key in keys.keys() & info.keys()}
        if unreadable := set(unreadable) - self.unreadable:
            self.unreadable |= unreadable
            runner.logger.warning(f'not saved, as it is no plain data: {some(sorted(unreadable))}')

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
        outdated = [STOPPED, *(self.filename_tmpl.format(s) for s in kept[: -self.max_keep_ckpts])]
        self._save(runner, self.filename_tmpl.format(step), meta)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
        for name in outdated:
            self._remove(name)

    def save_stopped(self, runner, done: int) -> str:
        """Save the state after so many iterations, wherever in an epoch that is. Returns the file."""
        if self.saved == done:
            return self.last_ckpt
        meta = dict(epoch=runner.epoch, iter=done)
        if self.by_epoch:
            self._save(runner, STOPPED, meta)
        else:
            self._save_checkpoint_with_step(runner, done, meta)
        return self.last_ckpt

    def _save(self, runner, filename: str, meta: dict) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        names = ('save_optimizer', 'save_param_scheduler', 'by_epoch', 'backend_args')
        settings = {name: getattr(self, name) for name in names}
        # With new best weights, a checkpoint that was saved before the validation is replaced after it.
        meta['validated'] = self.validated == meta['iter']
        runner.save_checkpoint(self.out_dir, filename, self.file_client_args, meta=meta, **settings)
        if is_main_process():
            write_text(osp.join(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
        self.saved = meta['iter']

    def _save_best_checkpoint(self, runner, metrics) -> None:
        # A validation without training has no checkpoint that could be the best.
        if not hasattr(self, 'file_backend'):
            return
        self.validated = runner.iter
        if missing := [key for key in self.save_best or () if key not in ('auto', *metrics)]:
            place = 'default_hooks.checkpoint.save_best'
            raise InputError(f'{place}={missing[0]!r} must be one of the metrics: {", ".join(metrics)}')
        # mmengine keeps the path of a single metric in an attribute.
        several = hasattr(self, 'best_ckpt_path_dict')
        paths = self.best_ckpt_path_dict if several else vars(self)
        old = dict(paths) if several else dict(best_ckpt_path=paths.get('best_ckpt_path'))
        # mmengine would delete the old file before it saves the new one, so its path is hidden meanwhile.
        paths.update(dict.fromkeys(old))
        super()._save_best_checkpoint(runner, metrics)
        for key, path in old.items():
            if paths[key] is None:
                paths[key] = path
            elif path and osp.basename(path) != osp.basename(paths[key]):
                # Only inside this folder: a copied run must not delete the file of the original.
                self._remove(osp.basename(path))

    def _remove(self, name: str) -> None:
        path = self.file_backend.join_path(self.out_dir, name)
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
