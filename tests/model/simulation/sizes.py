"""The size limits of a plan, in the place of the product's own, which are too large for small histories."""

import contextlib
from collections.abc import Iterator
from unittest import mock

from simulation.plan import Plan


@contextlib.contextmanager
def sizes_of(plan: Plan) -> Iterator[None]:
    """Apply the plan's size limits for messages and inline sums until the end of the block."""
    with contextlib.ExitStack() as stack:
        for module in ("aggregator.service.send_queue", "client.core.scheduler"):
            stack.enter_context(mock.patch(f"psum.{module}.BATCH_BYTES", plan.batch_bytes))
        stack.enter_context(mock.patch("psum.client.core.kept_sums.KEPT_VIEW_BYTES", plan.batch_bytes))
        stack.enter_context(mock.patch("psum.client.core.key_rounds.LARGE_PAYLOAD_BYTES", plan.small_bytes))
        stack.enter_context(mock.patch("psum.planes.inline.InlineWorker.batch_bytes", plan.batch_bytes))
        if plan.direct:
            stack.enter_context(mock.patch("psum.client.core.send_window.LARGE_PAYLOAD_BYTES", plan.inline_bytes))
        stack.enter_context(mock.patch("psum.aggregator.core.small_rounds.MOST_BYTES", plan.batch_bytes))
        for module in ("core.layouts", "service.delivery", "service.summation"):
            stack.enter_context(mock.patch(f"psum.aggregator.{module}.LARGE_PAYLOAD_BYTES", plan.inline_bytes))
        stack.enter_context(mock.patch("simulation.aggregator.LatePool.at_once_bytes", plan.inline_bytes))
        yield
