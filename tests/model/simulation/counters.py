"""What happened in histories, counted."""

from collections import Counter

#: The order and the words of the summary.
_LINES = {
    "histories": "histories",
    "rounds": "rounds that every rank asked for (and some of them failed on purpose)",
    "deliveries": "results delivered to a rank, compared with the model",
    "failures": "operations that ended with the error that was to be expected",
    "messages": "messages that arrived",
    "invariants": "times that both sides' invariants were checked",
}


class Counters(Counter[str]):
    """Counts by kind; faults have names that begin with 'fault: ', endings with 'ending: '."""

    def __str__(self) -> str:
        lines = [f"{self[kind]:>12,} {words}" for kind, words in _LINES.items()]
        for prefix in ("fault: ", "ending: "):
            lines.append(f"{prefix[:-2]}s by kind:")
            lines += [f"{n:>12,} {kind.removeprefix(prefix)}" for kind, n in sorted(self.items()) if prefix in kind]
        return "\n".join(lines)
