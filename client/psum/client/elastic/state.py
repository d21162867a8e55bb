"""The state of a program in an elastic job, and its step boundaries."""

import contextlib
import logging
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, Final

import numpy as np

from psum.client import termination
from psum.client.client import Client
from psum.client.elastic import boundary
from psum.client.elastic.link import Link, RollCall
from psum.client.elastic.sources import ArraySource, StateSource, source_of
from psum.wire.errors import ClosedError, InvalidError

_log = logging.getLogger(__name__)

#: How long a rank that leaves may wait for others that need a sum of it.
_LEAVE_SECONDS: Final = 10.0


class ElasticState:
    """What a process gets that joins a running elastic job, and the boundaries between the steps.

        state = psum.client.ElasticState(client, {"weights": weights, "momentum": momentum}, epoch=0, batch=0)
        while state.batch < 1000:
            ...  # one step: gradients, their sums, the update
            state.batch += 1
            state.step()

    A process that joins waits in the constructor. It gets everything from a member, at a boundary that is the same for
    all: the sources, and the values. From then on it takes part in each step, with the same bits.

    All members call `step` after each step, the same number of times. If a job is not elastic, it does nothing.

    Args:
        client: The client.
        sources: The parts of the state, by names that are the same in all processes: arrays of NumPy and
            dictionaries, which are filled in place, generators of random numbers, and objects with the methods of
            StateSource.
        exit_on_leave: Whether `step` ends the program when this process leaves: by SystemExit with the status that
            PSUM_LEAVE_STATUS says, usually 0.
        **values: Further values that can be pickled. They are attributes, to be read and set.

    Attributes:
        joined: Whether this process has joined a running job.
        left: Whether this process has left the job.

    Raises:
        InvalidError: This process joins a job, and the state could not be given or taken. The text names the entry.
        PsumError: It joins, and was refused, or the job has failed.
        TypeError: A source is none of these, or a value has the name of a method or an attribute of this class.
        RuntimeError: The client has an ElasticState already.
    """

    joined: bool
    left: bool
    _values: dict[str, Any]
    _client: Client
    _sources: dict[str, StateSource]
    _hooks: list[Callable[[tuple[int, ...]], None]]
    _leaving: bool
    _exit_on_leave: bool
    _members: tuple[int, ...]
    _link: Link | None
    _call: RollCall | None

    def __init__(
        self,
        client: Client,
        sources: Mapping[str, StateSource | Any] | None = None,
        /,
        *,
        exit_on_leave: bool = True,
        **values: Any,
    ) -> None:
        self._check_names(values)
        own = self.__dict__
        own["_values"] = values
        own["_client"] = client
        own["_sources"] = {name: source_of(name, given) for name, given in (sources or {}).items()}
        own["_hooks"] = []
        own["_leaving"] = own["left"] = own["joined"] = False
        own["_exit_on_leave"] = exit_on_leave
        own["_members"] = tuple(range(client.num_workers))
        own["_link"] = link = client.link
        own["_call"] = None
        if link is None:
            return
        link.claim()
        if link.joining:
            own["_members"] = boundary.join(link, self._load).members
            own["joined"] = True
            _log.warning("%s has joined the running job; its members are now %s", link.title, _names(self.members))
        termination.postpone(client, self.leave, client.settings.leave_timeout)
        own["_call"] = link.call(leaving=False, ahead=True)

    @classmethod
    def _check_names(cls, values: Iterable[str], entries: Container[str] = ()) -> None:
        """Refuses names of values under which something else is found.

        Args:
            values: The names.
            entries: The names of entries that the state has besides values.

        Raises:
            TypeError: A name is that of a method or an attribute of this class, or of an entry.
        """
        for name in values:
            if name.startswith("_") or hasattr(cls, name) or name in _OWN or name in entries:
                raise TypeError(f"a value of an ElasticState cannot be called {name!r}, which has a meaning of its own")

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(f"this ElasticState has no value {name!r}; give it to the constructor") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        elif name in self._values:
            self._values[name] = value
        else:
            raise AttributeError(f"this ElasticState has no value {name!r} that can be set; give it to the constructor")

    def __repr__(self) -> str:
        values = "".join(f" {name}={value!r}" for name, value in self._values.items())
        return f"<{type(self).__name__} members={_names(self.members)}{values}>"

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks of the job, ascending, the same on all of them between two boundaries.

        A rank that is lost is among them until the roll call of a later boundary lacks it.
        """
        return self._members

    @property
    def leaving(self) -> bool:
        """Whether this process was asked to leave, by `leave` or SIGTERM."""
        return self._leaving

    def leave(self) -> None:
        """Asks this process to leave at one of the next two boundaries. From any thread and any signal handler."""
        self.__dict__["_leaving"] = True

    def on_change(self, hook: Callable[[tuple[int, ...]], None]) -> None:
        """Calls a function with the new members after each boundary at which they have changed, within `step`."""
        self._hooks.append(hook)

    def settle(self) -> None:
        """Called before a process is let in: all operations that the program has begun must be complete afterwards.

        For subclasses whose framework runs operations later.
        """
        self._client.drain(self._client.settings.round_timeout)

    def hand_over(self) -> None:
        """Called before this process leaves: all operations of its last steps must have their values afterwards.

        For subclasses whose framework runs operations later.
        """

    def step(self) -> None:
        """The boundary after a step. Lets at most one process in, and waits until it has the state.

        Raises:
            SystemExit: This process has left the job, as it was asked to.
            ClosedError: It had left before.
            PsumError: The job has failed.
        """
        if (link := self._link) is None:
            return
        call = self._call
        if self.left or call is None:
            raise ClosedError(f"{link.title} has left the job; its program must end")
        link.boundaries += 1
        present = boundary.conclude(link, call, settle=self.settle, save=self._save, is_leaving=lambda: self.leaving)
        members = present.members
        if changed := members != self._members:
            self._members = members
        if link.rank in present.leaving:
            self._leave(link)
            return
        # In each step, so without the checks of __setattr__.
        self.__dict__["_call"] = link.call(leaving=self._leaving, ahead=True)
        if changed:
            _log.info("%s: the members are now %s", link.title, _names(members))
            for hook in self._hooks:
                hook(members)

    def _leave(self, link: Link) -> None:
        # If this takes too long, the process ends as one that comes to no boundary: it is still watched.
        self.hand_over()
        self.__dict__["left"] = True
        self._call = None
        termination.postpone(self._client, None)
        _log.warning("%s leaves the job in good order, as it was asked to", link.title)
        link.leave(_LEAVE_SECONDS)
        if self._exit_on_leave:
            raise SystemExit(self._client.settings.leave_status)

    def _save(self) -> dict[str, object]:
        entries: dict[str, object] = {}
        for name, source in self._sources.items():
            try:
                entries[name] = source.save()
            except Exception as error:
                raise InvalidError(
                    f"entry {name!r} of the elastic state could not be saved, so no process can join:"
                    f" {type(error).__name__}: {error}"
                ) from error
        return entries | {_value(name): value for name, value in self._values.items()}

    def _load(self, entries: Mapping[str, object]) -> None:
        expected = {*self._sources, *map(_value, self._values)}
        if entries.keys() != expected:
            lacking, unknown = sorted(expected - entries.keys()), sorted(entries.keys() - expected)
            parts = [f"the job has no {', '.join(lacking)}"] if lacking else []
            parts += [f"this process has no {', '.join(unknown)}"] if unknown else []
            raise InvalidError(
                f"the elastic state of this process is not that of the job that it joins: {'; '.join(parts)}. All"
                " processes must run the same program with the same settings"
            )
        for name, source in self._sources.items():
            source.load(entries[name])
        for name, value in self._values.items():
            new = entries[_value(name)]
            if isinstance(value, np.ndarray) and value.flags.writeable:
                # The program may have the array under another name.
                with contextlib.suppress(InvalidError):
                    ArraySource(name, value).load(new)
                    continue
            self._values[name] = new


def _value(name: str) -> str:
    """The entry of a value. No source may be called so."""
    return f"state.{name}"


def _names(ranks: tuple[int, ...]) -> str:
    return ",".join(map(str, ranks))


#: Further names that no value may have.
_OWN: Final = frozenset({"joined", "left", "client", "sources"})
