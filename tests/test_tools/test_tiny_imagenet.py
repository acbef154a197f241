"""The subset of Tiny-ImageNet: of the validation images used here, 7 and 10 are listed, 8 is not."""

from tools.dataset_converters import tiny_imagenet


def test_subset(tmp_path, refused):
    source, out = tmp_path / 'official', tmp_path / 'out'
    train = [f'train/n01945685/images/n01945685_{i}.JPEG' for i in range(201) if i != 164]
    for name in (*train, *(f'val/images/val_{i}.JPEG' for i in (7, 8, 10))):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b'')
    assert 'val_annotations.txt' in refused(tiny_imagenet, source, '--out', out)
    lines = (f'val_{i}.JPEG\tn01945685\t0' for i in (7, 8, 10))
    (source / 'val/val_annotations.txt').write_text('\n'.join(lines))
    tiny_imagenet.main([str(source), '--out', str(out)])
    found = {str(path.relative_to(out)): path.resolve() for path in out.rglob('*.JPEG')}
    expected = {name.replace('images/', ''): source / name for name in train[:-1]}
    expected |= {f'val/n01945685/val_{i}.JPEG': source / f'val/images/val_{i}.JPEG' for i in (7, 10)}
    assert found == expected
    assert str(out) in refused(tiny_imagenet, source, '--out', out)
