"""Names that a user wrote, checked against those that exist."""

import difflib
from collections.abc import Iterable


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """
    Raises:
        ValueError: for a name that is not known, with the nearest one that is.
    """
    known = list(known)
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            choice = f" Choose one of {', '.join(known)}." if len(known) <= 20 else ""
            hint = f" Did you mean {nearest[0]!r}?" if nearest else choice
            raise ValueError(f"{name!r} is not {what}.{hint}")
