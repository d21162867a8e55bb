"""What PSUM_ELASTIC says: with how many workers a job may go on."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Elastic:
    """How many workers an elastic job may have.

    Attributes:
        minimum: The least number with which sums are made.
        maximum: The most that the job may have. In settings it is at least `num_workers`, which is the default.
    """

    minimum: int
    maximum: int

    def __str__(self) -> str:
        return f"{self.minimum}:{self.maximum}"


def parse_elastic(text: str) -> Elastic | None:
    """Reads min or min:max; None if the text is off. Without a maximum, that is 0, and the settings know it.

    Raises:
        ValueError: The text is neither, or has a number below 1, or the least number is larger than the most.
    """
    text = text.strip()
    if text.lower() == "off":
        return None
    least, colon, most = text.partition(":")
    numbers = [least, most] if colon else [least]
    if not all(number.isascii() and number.isdecimal() and int(number) for number in numbers):
        raise ValueError("expected the least number of workers, or the least and the most, from 1, such as 2 or 2:8")
    minimum, maximum = int(least), int(most) if colon else 0
    if 0 < maximum < minimum:
        raise ValueError(f"the least number of workers, {minimum}, is larger than the most, {maximum}")
    return Elastic(minimum, maximum)
