"""What MXNet's own stores do beside sums and broadcasts, and psum's does not. The errors say what to do instead."""

from collections.abc import Mapping
from typing import Any, NoReturn

from psum.mxnet.compat import mx

_ON_THE_WORKERS = "this store keeps no weights and runs no optimizer: gluon.Trainer and Module do that on the workers."


class StoreWithoutWeights(mx.kvstore.KVStoreBase):  # type: ignore[misc]
    """A store that keeps no weights: it can neither push and pull them apart, nor update them.

    Methods that are not implemented raise a NotImplementedError, which says what to do instead.
    """

    def push(self, key: Any, value: Any, priority: int = 0) -> NoReturn:
        """Not implemented."""
        raise NotImplementedError(
            "push: this store keeps no values for a later pull. kv.pushpull(key, value, out) does both at once"
        )

    def pull(self, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True) -> NoReturn:
        """Not implemented."""
        raise NotImplementedError(
            "pull: this store keeps no values. kv.pushpull(key, value, out) gives the sum over all workers,"
            " kv.broadcast(key, value, out) the value of rank 0"
        )

    def row_sparse_pull(self, key: Any, out: Any = None, priority: int = 0, row_ids: Any = None) -> NoReturn:
        """Not implemented."""
        raise NotImplementedError(
            "row_sparse_pull: psum sums dense arrays only. Make parameters with stype='default' and"
            " grad_stype='default' (Embedding: sparse_grad=False)"
        )

    @staticmethod
    def is_capable(capability: str) -> bool:
        """Returns False for every capability: this store keeps no weights."""
        return False

    def set_optimizer(self, optimizer: Any) -> None:
        """Not implemented."""
        raise NotImplementedError(f"set_optimizer: {_ON_THE_WORKERS} Pass the optimizer to them")

    def save_optimizer_states(self, fname: str, dump_optimizer: bool = False) -> None:
        """Not implemented."""
        raise NotImplementedError(f"save_optimizer_states: {_ON_THE_WORKERS} Use Trainer.save_states")

    def load_optimizer_states(self, fname: str) -> None:
        """Not implemented."""
        raise NotImplementedError(f"load_optimizer_states: {_ON_THE_WORKERS} Use Trainer.load_states")

    def set_gradient_compression(self, compression_params: Mapping[str, Any] | None) -> None:
        """Accepts only None, {} and {'type': 'none'}: psum does not compress.

        Raises:
            NotImplementedError: The parameters ask for compression.
        """
        if compression_params and compression_params.get("type") != "none":
            raise NotImplementedError(
                f"gradient compression {dict(compression_params)!r}: psum sends gradients as they are; leave"
                " compression_params out, and cast the network to float16 to halve the bytes"
            )

    # MXNet's own stores have these undocumented methods, and programs use them.

    def _set_updater(self, updater: Any) -> NoReturn:
        """Not implemented."""
        raise NotImplementedError(f"_set_updater: {_ON_THE_WORKERS} Update there what pushpull gives")

    def _send_command_to_servers(self, head: Any, body: Any) -> NoReturn:
        """Not implemented."""
        raise NotImplementedError(
            "_send_command_to_servers: aggregators take no commands of programs; `psum status` shows what they do"
        )
