"""What a key is called where people read of it: by its name, and by what it stands for where somebody knows."""


def titled(name: str, label: str) -> str:
    """For sentences: '0' (dense0_weight), or 'w' where the label is empty."""
    return f"{name!r} ({label})" if label else repr(name)


def captioned(name: str, label: str) -> str:
    """For tables and pictures: 0 (dense0_weight), or w where the label is empty."""
    return f"{name} ({label})" if label else name
