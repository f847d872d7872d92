"""What length costs: DAPO's soft penalty near the limit."""


def overlong_penalty(length: int, *, limit: int, buffer: int, penalty: float = 1.0) -> float:
    """What a response of ``length`` tokens loses: 0 up to limit - buffer, then evenly up to all.

        penalty * clip((length - (limit - buffer)) / buffer, 0, 1)

    Args:
        limit: the longest response allowed; one that reaches it loses ``penalty``.
        buffer: tokens before the limit over which the cost rises; 0 switches it off.

    Example:
        >>> overlong_penalty(90, limit=100, buffer=40)
        0.75

    Ref: https://arxiv.org/abs/2503.14476 (soft overlong punishment)
    """
    if not buffer:
        return 0.0
    return penalty * min(max((length - (limit - buffer)) / buffer, 0.0), 1.0)
