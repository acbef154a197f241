"""Private names of other packages, each with the version it was read in and a fallback.

No other module of mmvisiongru may read a ``_private`` attribute of a foreign package
(``tests/test_layout.py`` checks this), so that an upgrade of a dependency has one file to break. Every name
here works without its private counterpart, more slowly or with less detail.
"""
