"""Why a plane cannot be used."""


class PlaneError(Exception):
    """A plane cannot be used; the text says why.

    Attributes:
        scarce: Whether the system has run out of something. If not, the plane is impossible here, as shared memory is
            between two hosts.
    """

    def __init__(self, text: str, *, scarce: bool = False) -> None:
        self.scarce = scarce
        super().__init__(text)
