"""The one exception of the toolkit."""


class CollapseError(ValueError):
    """A user's mistake: the message names the argument, its value and the remedy, on one line.

    Numerical outcomes (not converged, not optimal) are never exceptions; they are statuses of a result.

    Examples
    --------
    >>> raise CollapseError("counts: class 2 has 0 samples; drop the class or give it at least 1")
    Traceback (most recent call last):
    ...
    collapsekit.errors.CollapseError: counts: class 2 has 0 samples; drop the class or give it at least 1
    """
