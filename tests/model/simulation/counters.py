"""Counts of what happened in histories."""

from collections import Counter

#: Order and labels of the summary.
_LINES = {
    "histories": "histories",
    "relayed": "histories with relays",
    "direct": "histories with payloads that follow their message",
    "levels": "histories with relays on two levels",
    "rounds": "rounds requested by every rank (some fail on purpose)",
    "deliveries": "results delivered to a rank and compared with the model",
    "failures": "operations that failed with an expected error",
    "messages": "messages and payloads received",
    "ranks lost": "processes of elastic jobs that were lost",
    "members left": "members of elastic jobs that left before the others",
    "joins": "processes that joined an elastic job",
    "joins that begin again": "processes that were lost before they were let in, and asked again",
    "invariants": "checks of both sides' invariants",
}


class Counters(Counter[str]):
    """Counts by kind. The kinds of faults start with 'fault: ', those of endings with 'ending: '."""

    def __str__(self) -> str:
        lines = [f"{self[kind]:>12,} {words}" for kind, words in _LINES.items()]
        for prefix in ("fault: ", "ending: "):
            lines.append(f"{prefix[:-2]}s by kind:")
            lines += [f"{n:>12,} {kind.removeprefix(prefix)}" for kind, n in sorted(self.items()) if prefix in kind]
        return "\n".join(lines)
