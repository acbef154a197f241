"""What the tests of the scripts share."""

import pytest

from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, save_weights, write_config

# Content of the checkpoints, by config: the same for all tests.
CHECKPOINTS = {}


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


def write_model(folder, text, data, extra=''):
    config, path = write_config(folder / 'tiny.py', text, data, extra), folder / 'fits.pth'
    if text not in CHECKPOINTS:
        save_weights(config, path)
        CHECKPOINTS[text] = path.read_bytes()
    path.write_bytes(CHECKPOINTS[text])
    return config.name


@pytest.fixture
def classifier(workplace):
    """A config with data, and a checkpoint that fits."""
    return write_model(workplace, CLASSIFICATION, 'inet', "launcher = 'none'\n")


@pytest.fixture
def segmentor(workplace):
    """The same of a segmentor."""
    return write_model(workplace, SEGMENTATION, 'ade')
