"""What the ranks of a group tell each other through torch's store, with a deadline."""

import json
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch.distributed as dist
from psum.client import ConnectError

#: The pauses between looks into the store. One look of each of a thousand ranks takes the store some milliseconds.
_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 0.1

_BYTES: Final = 4


class Exchange:
    """A meeting of the ranks of one group in torch's store.

    The store may have keys of earlier meetings: torchrun's agents keep theirs when they start the processes again, and
    no number that all ranks know counts these runs. So rank 0 opens each meeting under a random name. The others find
    the name, and know by a random word of their own, which rank 0 repeats, that it is not an earlier one.

    Args:
        store: The group's store.
        rank: This process's rank in the group.
        size: The group's size.
        timeout: How many seconds all of the exchange may take.

    Attributes:
        host: The host that has the store; empty if the store is not on a host, as a file.
    """

    def __init__(self, store: Any, rank: int, size: int, *, timeout: float) -> None:
        self._rank = rank
        self._size = size
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self.host, self._address = _place_of(store)
        self._all = dist.PrefixStore("psum", store)
        self._meeting: Any = None
        self._word = secrets.token_hex(_BYTES)

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return max(0.0, self._deadline - time.monotonic())

    def decide(self, report: Any, decision: Callable[[Sequence[Any], int], Any]) -> Any:
        """Returns what rank 0 decides from the reports of all ranks.

        Args:
            report: This rank's report: something that JSON can express.
            decision: Decides, on rank 0, from the reports of all ranks and the number of earlier meetings in the store.

        Raises:
            ConnectError: The time is over, or the store does not answer.
        """
        if self._rank == 0:
            name = secrets.token_hex(_BYTES)
            earlier = self._ask(lambda: self._all.add("meetings", 1)) - 1
            self._meet(name)
            self._ask(lambda: self._all.set("meeting", name))
            ranks = range(1, self._size)
            others = self.collect([f"report/{rank}" for rank in ranks], ranks, "all ranks of the group")
            words, reports = zip((self._word, report), *others, strict=True)
            # Everything passes JSON, so that rank 0 has what the others get.
            self.publish("decision", [words, decision(json.loads(json.dumps(reports)), earlier)])
        else:
            self._find_meeting(report)
        return self.collect(["decision"], [0], "the decision of rank 0")[0][1]

    def publish(self, key: str, value: Any) -> None:
        """Tells all ranks something that JSON can express.

        Raises:
            ConnectError: The store does not answer.
        """
        self._ask(lambda: self._meeting.set(key, json.dumps(value)))

    def collect(self, keys: Sequence[str], ranks: Sequence[int], doing: str) -> list[Any]:
        """Waits for what ranks publish.

        Args:
            keys: The keys.
            ranks: The rank that publishes each.
            doing: What this rank waits for, for an error: 'rank 1 waited 5 s for …'.

        Raises:
            ConnectError: The time is over, or the store does not answer.
        """
        self._wait(
            # Not with Store.wait: Ctrl-C has no effect during that.
            lambda: not keys or self._ask(lambda: self._meeting.check(list(keys))),
            lambda: [rank for key, rank in zip(keys, ranks, strict=True) if not self._has(self._meeting, key)],
            doing,
        )
        return [self._get(self._meeting, key) for key in keys]

    def _find_meeting(self, report: Any) -> None:
        """Reports to rank 0 in each meeting that it opens, until one is decided with this rank's word."""
        joined = ""

        def is_decided() -> bool:
            nonlocal joined
            if not self._has(self._all, "meeting"):
                return False
            name = self._ask(lambda: self._all.get("meeting")).decode()
            if name != joined:
                joined = name
                self._meet(name)
                self.publish(f"report/{self._rank}", [self._word, report])
            if not self._has(self._meeting, "decision"):
                return False
            words = self._get(self._meeting, "decision")[0]
            return bool(len(words) == self._size and words[self._rank] == self._word)

        self._wait(is_decided, lambda: [0], "rank 0, which waits for all ranks of the group")

    def _meet(self, name: str) -> None:
        self._meeting = dist.PrefixStore(name, self._all)

    def _wait(self, condition: Callable[[], bool], late: Callable[[], Sequence[int]], doing: str) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not condition():
            if not self.left:
                ranks = late()
                names = ", ".join(map(str, ranks))
                raise self._error(
                    f"waited {self._timeout:g} s for {doing}, and {'rank' if len(ranks) == 1 else 'ranks'} {names} did"
                    " not come; has every rank made this group, and do all run?"
                )
            time.sleep(min(pause, self.left))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _has(self, store: Any, key: str) -> bool:
        return bool(self._ask(lambda: store.check([key])))

    def _get(self, store: Any, key: str) -> Any:
        return json.loads(self._ask(lambda: store.get(key)))

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:
            raise self._error(
                f"got no answer from torch's store ({error}); has the process that keeps it ended?"
            ) from None

    def _error(self, text: str) -> ConnectError:
        where = f" (torch's store at {self._address})" if self.host else ""
        return ConnectError(f"rank {self._rank} {text}{where}", address=self._address)


def _place_of(store: Any) -> tuple[str, str]:
    """The host and the address of a store; of one without a host, empty and what it is."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    host = str(getattr(store, "host", ""))
    return host, f"{host}:{store.port}" if host else type(store).__name__
