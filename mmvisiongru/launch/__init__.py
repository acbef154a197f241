"""What happens before a Runner exists: command line, config, processes, and the checks of all three."""
