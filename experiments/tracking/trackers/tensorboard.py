"""TensorBoard: event files in RUN/tracking/tensorboard, and settings for its HParams page.

tensorboard --logdir runs/cola
"""

import importlib
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.tracking.tracker import DONE, NO_IMAGES, Status, TrackedRun, Tracker

_PROTO = "tensorboard.compat.proto"
_HPARAMS = "tensorboard.plugins.hparams"


class TensorBoard(Tracker):
    """Every process adds an event file to the run's folder.

    If a run goes on, TensorBoard drops the steps after the checkpoint, which are written again.
    """

    package = "tensorboard"

    def __init__(self, run: TrackedRun):
        super().__init__(run)
        self._event_pb2: Any = importlib.import_module(f"{_PROTO}.event_pb2")
        self._summary_pb2: Any = importlib.import_module(f"{_PROTO}.summary_pb2")
        self._last = _last(run)
        writer: Any = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._writer = writer.EventFileWriter(str(run.folder), flush_secs=5)
        start = self._event_pb2.SessionLog(status=self._event_pb2.SessionLog.START)
        self._add(run.restored + 1, session_log=start)
        hparams: Any = importlib.import_module(f"{_HPARAMS}.summary_v2")
        settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in run.settings.items()
        }
        self._add(0, summary=hparams.hparams_pb(settings, trial_id=run.identity))

    @property
    def where(self) -> str:
        return str(self.run.folder)

    def last(self) -> Mapping[str, int]:
        return self._last

    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        make = self._summary_pb2.Summary
        values = [make.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        for name, path in images.items():
            content = path.read_bytes()
            width, height = struct.unpack(">II", content[16:24])  # of a PNG's first chunk
            image = make.Image(
                width=width, height=height, colorspace=4, encoded_image_string=content
            )
            values.append(make.Value(tag=name, image=image))
        self._add(step, summary=make(value=values))

    def end(self, status: Status) -> None:
        """Write the status as a text; also as that of HParams, unless the run will go on."""
        text: Any = importlib.import_module("tensorboard.plugins.text.metadata")
        tensor: Any = importlib.import_module(f"{_PROTO}.tensor_pb2")
        types: Any = importlib.import_module(f"{_PROTO}.types_pb2")
        shape: Any = importlib.import_module(f"{_PROTO}.tensor_shape_pb2")
        one = shape.TensorShapeProto(dim=[shape.TensorShapeProto.Dim(size=1)])
        value = self._summary_pb2.Summary.Value(
            tag="status",
            metadata=text.create_summary_metadata("status", ""),
            tensor=tensor.TensorProto(
                dtype=types.DT_STRING, string_val=[status.encode()], tensor_shape=one
            ),
        )
        self._add(self.run.restored, summary=self._summary_pb2.Summary(value=[value]))
        if status not in ("preempted", "killed"):
            self._end_session("STATUS_SUCCESS" if status in DONE else "STATUS_FAILURE")
        self._writer.close()

    def _end_session(self, status: str) -> None:
        """Add the status for HParams; the library's own function for it needs TensorFlow."""
        kinds: Any = importlib.import_module(f"{_HPARAMS}.api_pb2").Status
        data: Any = importlib.import_module(f"{_HPARAMS}.plugin_data_pb2")
        metadata: Any = importlib.import_module(f"{_HPARAMS}.metadata")
        info = data.SessionEndInfo(status=kinds.Value(status), end_time_secs=time.time())
        value = self._summary_pb2.Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(
                data.HParamsPluginData(session_end_info=info)
            ),
            tensor=metadata.NULL_TENSOR,
        )
        self._add(0, summary=self._summary_pb2.Summary(value=[value]))

    def _add(self, step: int, **content: Any) -> None:
        event = self._event_pb2.Event(step=step, wall_time=time.time(), **content)
        self._writer.add_event(event)


def _last(run: TrackedRun) -> dict[str, int]:
    """The last step of each scalar in the run's event files that a new START event leaves."""
    if not any(run.folder.glob("events.out.tfevents.*")):
        return {}
    reader: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(run.folder), size_guidance={reader.SCALARS: 0})
    found.Reload()
    kept = {
        name: [each.step for each in found.Scalars(name) if each.step <= run.restored]
        for name in found.Tags()["scalars"]
    }
    return {name: max(steps) for name, steps in kept.items() if steps}
