"""The name of a key in text for people, with its label if it has one."""


def titled(name: str, label: str) -> str:
    """Return the name for sentences, such as "'0' (dense0_weight)", or "'w'" without a label."""
    return f"{name!r} ({label})" if label else repr(name)


def captioned(name: str, label: str) -> str:
    """Return the name for tables and pictures, such as "0 (dense0_weight)", or "w" without a label."""
    return f"{name} ({label})" if label else name
