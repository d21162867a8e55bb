"""What a client reports about itself: its metrics, its timeline, its log and its fault file."""

from psum.client import exit_status
from psum.client.core.session import Session
from psum.client.observe.exporter import Exporter
from psum.client.observe.fault_report import write_report
from psum.client.observe.logging import set_up_logging
from psum.client.observe.timeline import Timeline
from psum.client.settings import Settings, next_port
from psum.wire.errors import FaultError


class Telemetry:
    """Starts and stops what the settings ask for.

    Args:
        settings: The worker's settings.
        session: What is reported on.
    """

    def __init__(self, settings: Settings, session: Session) -> None:
        self._settings = settings
        self._session = session
        self._exporter: Exporter | None = None
        self._timeline: Timeline | None = None

    @property
    def metrics_address(self) -> str:
        """Where the metrics can be scraped; empty if the settings do not ask for them."""
        return self._exporter.address if self._exporter is not None else ""

    def set_up(self) -> None:
        """Sets up the log and the timeline."""
        set_up_logging(self._settings)
        if self._settings.trace_dir:
            self._timeline = Timeline(self._settings)
            self._session.recorder = self._timeline.recorder

    def serve_metrics(self) -> None:
        """Serves the metrics, if the settings ask for them.

        Raises:
            ConfigurationError: The settings ask for metrics, and the library for them is not installed.
        """
        if self._settings.metrics_port:
            address = next_port(self._settings.metrics_port, self._settings.local_rank)
            self._exporter = Exporter(self._session, self._settings.job, address)

    def report_fault(self, error: BaseException) -> None:
        """Notes an error that an aggregator reported: for the exit status, and the first one in the fault file."""
        if isinstance(error, FaultError):
            exit_status.note(error, self._session.rank)
            if self._settings.fault_file:
                write_report(error, self._settings.fault_file)

    @property
    def is_timeline_due(self) -> bool:
        """Whether all steps of the timeline are recorded, and it is not written yet."""
        return (recorder := self._session.recorder) is not None and recorder.over

    def write_timeline(self) -> None:
        """Writes the timeline, once. From any thread."""
        if self._timeline is not None:
            self._session.recorder = None
            self._timeline.write()

    def close(self) -> None:
        """Stops serving metrics."""
        if self._exporter is not None:
            self._exporter.close()
