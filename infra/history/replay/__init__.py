"""Reading topics and the event log again: to a file, another topic or a function of the user's; nothing is executed."""

from infra.history.replay.destinations import (
    FileDestination,
    HandlerDestination,
    HandlerFailed,
    Printed,
    TopicDestination,
    open_file,
)
from infra.history.replay.export import ExportRange, export, removed
from infra.history.replay.places import From, ReplayRefused, Until
from infra.history.replay.run import ReplayReport, replay
from infra.history.replay.selection import Selection

__all__ = [
    "ExportRange",
    "FileDestination",
    "From",
    "HandlerDestination",
    "HandlerFailed",
    "Printed",
    "ReplayRefused",
    "ReplayReport",
    "Selection",
    "TopicDestination",
    "Until",
    "export",
    "open_file",
    "removed",
    "replay",
]
