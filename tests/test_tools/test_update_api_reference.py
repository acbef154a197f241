"""The reference of the API is that of the code."""

from tools.misc import update_api_reference as tool


def test_the_page_is_up_to_date(capsys):
    assert tool.main(['--check']) == 0, 'run python tools/misc/update_api_reference.py'
    assert capsys.readouterr().out == ''


def test_what_is_public_has_arguments_and_a_docstring():
    text = tool.reference()
    for name in ('VisionGRU', 'mingru_scan', 'mingru_scan_2d', 'get_model', 'ReliableRunner', 'InputError'):
        assert f'\n### {name}\n' in text
    assert '\nNone\n' not in text


def test_a_change_is_noticed_and_written(monkeypatch, tmp_path, capsys):
    (tmp_path / 'docs').mkdir()
    monkeypatch.setattr(tool, 'TARGET', tmp_path / 'docs' / 'api.md')
    assert tool.main(['--check']) == 1
    assert not tool.TARGET.exists()
    assert tool.main([]) == 0
    assert tool.main(['--check']) == 0
    assert capsys.readouterr().out == 'docs/api.md is out of date\ndocs/api.md updated\n'
