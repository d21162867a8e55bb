"""Keys that only some ranks of an elastic job use."""

from collections.abc import Sequence

from psum.client.settings import Settings
from psum.wire.errors import InvalidError


def check_ranks(key: str, ranks: Sequence[int], settings: Settings, title: str) -> None:
    """Checks the ranks of a key that is not for all ranks. An aggregator would end the stream for wrong ones.

    Args:
        key: The key's name.
        ranks: The ranks that use it.
        settings: Those of this worker.
        title: Which worker this is, for people.

    Raises:
        InvalidError: The job is not elastic.
        ValueError: A rank is none of the job, or there twice, or this worker's is missing.
    """
    rank, elastic = settings.rank, settings.elastic
    if elastic is None:
        raise InvalidError(
            f"key {key!r} is for the ranks {list(ranks)} only, and {title} is in a job that is not elastic"
            " (PSUM_ELASTIC), in which each rank uses each key"
        )
    if rank not in ranks or len(set(ranks)) != len(ranks) or not 0 <= min(ranks) <= max(ranks) < elastic.maximum:
        raise ValueError(
            f"key {key!r} is for the ranks {list(ranks)}; expected each rank once, from 0 to {elastic.maximum - 1},"
            f" with rank {rank}, which is this one"
        )
