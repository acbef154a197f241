"""What both families of released checkpoints share."""

SEG_HEADS = ('decode_head.', 'auxiliary_head.')


def first(names):
    """The first three of a list, for a message of one line."""
    return ', '.join(map(str, list(names)[:3]))
