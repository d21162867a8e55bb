"""What a process gets that joins a running elastic job of MXNet: parameters, optimizers, and the program's values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import psum.client
from psum.client import Client, InvalidError, shared_client
from psum.mxnet.compat import MAJOR_VERSION, mx
from psum.mxnet.kvstore import BytePS
from psum.mxnet.names import NumberedName

#: What optimizers have that belongs to their process.
_NOT_SAVED = ("param_dict",)


class ElasticState(psum.client.ElasticState):
    """The state of a training with gluon.Trainer in an elastic job, and the boundaries between its steps.

        trainer = gluon.Trainer(net.collect_params(), "adam", kvstore="byteps")
        state = psum.mxnet.ElasticState(trainer, batch=0)
        while state.batch < 1000:
            ...  # forward, backward
            trainer.step(batch_size)
            state.batch += 1
            state.step()

    Make it before the training loop. In a process that joins, the constructor waits until the members of the job let it
    in, and fills in: all parameters of the trainer, the optimizer's state and counters, the loss scaler of AMP, and the
    values. All this has the same bits as on the others from then on. psum.client.ElasticState describes the rest.

    MXNet's own random numbers are not part of it, because MXNet does not tell their state. A program that wants them
    the same on all ranks seeds them in each step.

    Args:
        trainer: A Trainer with the store 'byteps', or a list of several. They have not stepped yet.
        exit_on_leave: Whether `step` ends the program, by SystemExit, when this process leaves.
        **values: Further values that can be pickled. They are attributes. NDArrays, and the parameters of networks
            (gluon.Block), are filled in place.

    Raises:
        TypeError: It is no Trainer, or one with another store, or a value has a name that means something else.
        InvalidError: This process joins, and has another model or optimizer than the others, or one without values.
        PsumError: See psum.client.ElasticState.
    """

    def __init__(self, trainer: Any, /, *, exit_on_leave: bool = True, **values: Any) -> None:
        trainers = list(trainer) if isinstance(trainer, list | tuple) else [trainer]
        clients = [_client_of(each) for each in trainers]
        sources: dict[str, Any] = {
            f"trainer {number}" if number else "trainer": _TrainerSource(each) for number, each in enumerate(trainers)
        }
        self._check_names(values, sources)
        for name, value in list(values.items()):
            if isinstance(value, mx.gluon.Block):
                sources[name] = _ParametersSource(list(value.collect_params().values()))
            elif isinstance(value, mx.nd.NDArray):
                sources[name] = _ArraySource(value)
            else:
                continue
            self.__dict__[name] = values.pop(name)
        super().__init__(clients[0] if clients else shared_client(), sources, exit_on_leave=exit_on_leave, **values)

    def hand_over(self) -> None:
        """Waits until MXNet's engine has computed what this process contributes to its last steps."""
        mx.nd.waitall()

    def settle(self) -> None:
        """Waits until MXNet's engine has no operation left, and with it psum."""
        mx.nd.waitall()
        super().settle()


def _client_of(trainer: Any) -> Client:
    """The client whose store a Trainer uses.

    Raises:
        TypeError: It is no Trainer, or uses another store.
    """
    if not isinstance(trainer, mx.gluon.Trainer):
        raise TypeError(f"an ElasticState of a {type(trainer).__name__}; expected a gluon.Trainer or a list of them")
    given = trainer._kvstore or trainer._kvstore_params["kvstore"]
    if isinstance(given, BytePS):
        return given._client
    if isinstance(given, NumberedName):
        return shared_client()
    raise TypeError(f"the Trainer has the store {given!r}; make it with kvstore='byteps'")


class _Saved:
    """An NDArray in a form that travels without a copy.

    Args:
        array: The array.
    """

    def __init__(self, array: Any) -> None:
        self.value: np.ndarray[Any, Any] = array.asnumpy()
        self.is_numpy = type(array) is not mx.nd.NDArray

    def restored(self, context: Any) -> Any:
        """The array, on a device."""
        make = mx.np.array if self.is_numpy else mx.nd.array
        return make(self.value, dtype=self.value.dtype, ctx=context)


def _packed(value: Any) -> Any:
    """A value with saved arrays instead of NDArrays."""
    if isinstance(value, mx.nd.NDArray):
        return _Saved(value)
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_packed(item) for item in value)
    return value


def _unpacked(value: Any, context: Any) -> Any:
    """The inverse of _packed, on a device."""
    if isinstance(value, _Saved):
        return value.restored(context)
    if isinstance(value, dict):
        return {key: _unpacked(item, context) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_unpacked(item, context) for item in value)
    return value


class _ArraySource:
    """An NDArray of the program."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def save(self) -> object:
        return _Saved(self._array)

    def load(self, saved: _Saved) -> None:
        array = self._array
        _check_like("an NDArray", array.shape, array.dtype, saved)
        array[:] = saved.restored(array.context)


class _ParametersSource:
    """Parameters, on all of their devices."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self._parameters = parameters

    def save(self) -> list[_Saved | None]:
        """The values. None stands for a parameter whose initialization waits for its shape."""
        return [None if each._data is None else _Saved(each.list_data()[0]) for each in self._parameters]

    def load(self, saved: Sequence[_Saved | None]) -> None:
        """Fills all parameters in.

        Raises:
            InvalidError: They are not those of the other process.
        """
        if len(saved) != len(self._parameters):
            raise InvalidError(
                f"this process has {len(self._parameters)} parameters, and the job that it joins {len(saved)}; run the"
                " same program with the same network in both"
            )
        for parameter, value in zip(self._parameters, saved, strict=True):
            if value is not None:
                _fill(parameter, value)


class _TrainerSource:
    """A Trainer with all that its next step depends on."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._parameters = _ParametersSource(trainer._params)

    def save(self) -> object:
        trainer = self._trainer
        optimizer = {name: value for name, value in vars(trainer._optimizer).items() if name not in _NOT_SAVED}
        scaler = getattr(trainer, "_amp_loss_scaler", None)
        store = trainer._kvstore
        return {
            "parameters": self._parameters.save(),
            "kind": type(trainer._optimizer).__name__,
            "optimizer": _packed(optimizer),
            "devices": [each.device_id for each in _devices_of(trainer)],
            "states": _packed(trainer._updaters[0].states),
            "scale": trainer._scale,
            "scaler": None if scaler is None else vars(scaler),
            "initialized": trainer._kv_initialized,
            "uninitialized": [n for n, each in enumerate(trainer._params) if _is_in(each, trainer._params_to_init)],
            "updates": store._updates if isinstance(store, BytePS) else 0,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        trainer = self._trainer
        self._parameters.load(saved["parameters"])
        self._load_optimizer(saved["kind"], saved["optimizer"], saved["devices"])
        for updater, context in zip(trainer._updaters, _devices_of(trainer), strict=True):
            updater.states = _unpacked(saved["states"], context)
            updater.states_synced = dict.fromkeys(updater.states, True)
        trainer._scale = saved["scale"]
        scaler = getattr(trainer, "_amp_loss_scaler", None)
        if (scaler is None) != (saved["scaler"] is None):
            raise InvalidError("only one of this process and the job that it joins scales losses (amp.init_trainer)")
        if scaler is not None:
            vars(scaler).update(saved["scaler"])
        if saved["initialized"]:
            # What the others have broadcast in their first step, this process has got already.
            if not trainer._kv_initialized:
                trainer._init_kvstore()
            trainer._params_to_init = [trainer._params[number] for number in saved["uninitialized"]]
            if isinstance(trainer._kvstore, BytePS):
                trainer._kvstore._updates = saved["updates"]

    def _load_optimizer(self, kind: str, saved: Mapping[str, Any], their_devices: Sequence[int]) -> None:
        optimizer, devices = self._trainer._optimizer, _devices_of(self._trainer)
        if len(devices) != len(their_devices):
            raise InvalidError(
                f"the Trainer has {len(devices)} devices here, and {len(their_devices)} in the job that this process"
                " joins; a process that joins must have as many devices as the others"
            )
        if type(optimizer).__name__ != kind:
            raise InvalidError(
                f"the optimizer is {type(optimizer).__name__} here, and {kind} in the job that this process joins"
            )
        new = _unpacked(saved, devices[0])
        # The optimizer counts updates by the number of the device, which may be another one in each process.
        counts = new["_all_index_update_counts"]
        new["_all_index_update_counts"] = {
            own.device_id: counts[their] for own, their in zip(devices, their_devices, strict=True) if their in counts
        }
        scheduler, its = getattr(optimizer, "lr_scheduler", None), new.get("lr_scheduler")
        if scheduler is not None and type(scheduler) is type(its):
            # The program may have it under another name.
            vars(scheduler).update(vars(its))
            new["lr_scheduler"] = scheduler
        vars(optimizer).update(new)


def _devices_of(trainer: Any) -> list[Any]:
    """The devices of a Trainer's parameters, in the order of its updaters."""
    # MXNet 2 renamed contexts to devices.
    devices: list[Any] = trainer._devices if MAJOR_VERSION >= 2 else trainer._contexts
    return devices


def _is_in(parameter: Any, parameters: Sequence[Any]) -> bool:
    return any(each is parameter for each in parameters)


def _fill(parameter: Any, saved: _Saved) -> None:
    """Gives a parameter a value on all devices, also if its initialization waits for its shape.

    Raises:
        InvalidError: The parameter has another shape or type, or was never initialized.
    """
    if parameter._data is None and not parameter._deferred_init:
        raise InvalidError(f"parameter {parameter.name} is not initialized; call initialize() before ElasticState")
    if parameter._data is not None:
        _check_like(f"parameter {parameter.name}", parameter.shape, parameter.dtype, saved)
    try:
        parameter.set_data(saved.restored(mx.cpu()))
        parameter._finish_deferred_init()
    except AssertionError as error:
        raise InvalidError(f"parameter {parameter.name} cannot have the shape {saved.value.shape}: {error}") from None


def _check_like(what: str, shape: Any, dtype: Any, saved: _Saved) -> None:
    there = saved.value
    if tuple(shape) != there.shape or np.dtype(dtype) != there.dtype:
        raise InvalidError(
            f"{what} is {np.dtype(dtype)} {tuple(shape)} in this process, and {there.dtype} {there.shape} in the job"
            " that it joins; a process that joins must have the same model and settings as the others"
        )
