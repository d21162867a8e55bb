"""What a process gets that joins a running elastic job of PyTorch: models, optimizers, and the program's values."""

import logging
from typing import Any, Final

import psum.client
import torch
from psum.client import Client
from psum.torch import job
from psum.torch.group import PsumProcessGroup
from psum.torch.state_sources import CommunicationSource, ModuleSource, source_of

_log = logging.getLogger(__name__)

#: The entry of what psum itself needs.
_COMMUNICATION: Final = "communication"


class ElasticState(psum.client.ElasticState):
    """The state of a training in an elastic job, and the boundaries between its steps.

        model = DistributedDataParallel(net)
        optimizer = torch.optim.AdamW(model.parameters())
        state = psum.torch.ElasticState(model, optimizer, batch=0)
        while state.batch < 1000:
            ...  # forward, backward, optimizer.step()
            state.batch += 1
            state.step()

    Make it before the training loop. In a process that joins, the constructor waits until the members of the job let it
    in, and fills in parameters, buffers, the optimizer's state and options, and the values. All this has the same bits
    as on the others from then on. psum.client.ElasticState describes the rest.

    Args:
        model: A module, such as a DistributedDataParallel, or a list of several.
        optimizer: A torch.optim.Optimizer, or a list of several; None: there is none.
        exit_on_leave: Whether `step` ends the program, by SystemExit, when this process leaves.
        **values: Further values. They are attributes. These are filled in place: modules, optimizers, tensors,
            torch.Generator (such as torch.default_generator), what has state_dict and load_state_dict (schedulers,
            GradScaler), and what has the methods of psum.client.StateSource. Others are pickled, and replaced.

    Raises:
        RuntimeError: The process has joined no job: init_process_group("psum") or psum.torch.init() comes before.
        TypeError: It is no module or no optimizer, or a value has a name that means something else, such as `model`.
        InvalidError: This process joins, and has another model or optimizer than the others, or other values.
        PsumError: See psum.client.ElasticState.
    """

    def __init__(self, model: Any, optimizer: Any = None, /, *, exit_on_leave: bool = True, **values: Any) -> None:
        client = _client()
        group = torch.distributed.group.WORLD if torch.distributed.is_initialized() else None
        sources: dict[str, Any] = {}
        for title, kind, given in (("model", torch.nn.Module, model), ("optimizer", torch.optim.Optimizer, optimizer)):
            several = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
            for number, each in enumerate(several):
                if not isinstance(each, kind):
                    raise TypeError(f"the {title} is a {type(each).__name__}; expected a {kind.__name__}, or a list")
                sources[f"{title} {number}" if number else title] = source_of(title, each)
        self._check_names(values, {*sources, _COMMUNICATION})
        for name, value in list(values.items()):
            if (source := source_of(name, value)) is not None:
                sources[name] = source
                self.__dict__[name] = values.pop(name)
        self.__dict__["_modules"] = [each for each in sources.values() if isinstance(each, ModuleSource)]
        # Last: making buckets anew uses collectives.
        sources[_COMMUNICATION] = CommunicationSource(client, group if isinstance(group, PsumProcessGroup) else None)
        super().__init__(client, sources, exit_on_leave=exit_on_leave, **values)
        for module in self._modules if client.elastic else ():
            if module.obstacle:
                # Now, and not only when the first process wants to join.
                _log.warning("rank %d: nobody can join this job: %s", client.rank, module.obstacle)

    def step(self) -> None:
        """See psum.client.ElasticState.step. After the first step it lets models make their final buckets."""
        if self._client.elastic:
            for module in self._modules:
                module.remake_buckets()
        super().step()


def _client() -> Client:
    """The membership in the job.

    Raises:
        RuntimeError: There is none.
    """
    client = job.groups_client()
    return client if client is not None else job.client()
