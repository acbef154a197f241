"""The three parts of ``python -m mmvisiongru``: a page about the machine, a check and a benchmark."""
