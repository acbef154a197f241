"""The tests; a package so that each of them, also run as a program, finds ``tests.harness``."""
