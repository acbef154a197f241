"""What the tests of the scripts share."""

import pytest

from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, save_weights, write_config


@pytest.fixture
def refused(capsys):
    """Calls a script with arguments that cannot be used; gives the one line that it ends with."""

    def call(script, *args) -> str:
        with pytest.raises(SystemExit, match='2'):
            script.main([*map(str, args)])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('error: ')
        return line

    return call


@pytest.fixture
def classifier(workplace):
    """A config with data, and a checkpoint that fits."""
    config = write_config(workplace / 'tiny.py', CLASSIFICATION, 'inet', "launcher = 'none'\n")
    save_weights(config, 'fits.pth')
    return 'tiny.py'


@pytest.fixture
def segmentor(workplace):
    """The same of a segmentor."""
    save_weights(write_config(workplace / 'tiny.py', SEGMENTATION, 'ade'), 'fits.pth')
    return 'tiny.py'
