"""The trackers: TensorBoard, Weights & Biases, Trackio and MLflow, each by the name of its package.

    tensorboard --logdir runs/cola
    wandb sync runs/cola/tracking/wandb/wandb/offline-run-*
    TRACKIO_DIR=runs/cola/tracking/trackio trackio show
    mlflow ui --backend-store-uri sqlite:///runs/cola/tracking/mlflow/mlflow.db

All of them write into the folder of the run, and the last two into that of its sweep or study,
unless their own environment variables name another place or a server.
"""

import importlib
import importlib.util
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.tracking.tracker import DONE, NO_IMAGES, Status, TrackedRun, Tracker


class TensorBoard(Tracker):
    """Event files in RUN/tracking/tensorboard, and settings for TensorBoard's HParams page.

    Every process adds an event file to the run's folder. If a run goes on, TensorBoard drops the
    steps after the checkpoint, which are written again.
    """

    package = "tensorboard"
    forgets = True

    def __init__(self, run: TrackedRun):
        super().__init__(run)
        writer: Any = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._writer = writer.EventFileWriter(str(run.folder), flush_secs=5)
        session = _proto("event").SessionLog
        self._add(run.restored + 1, session_log=session(status=session.START))
        settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in run.settings.items()
        }
        hparams = _hparams("summary_v2").hparams_pb(settings, trial_id=run.identity)
        self._add(0, summary=hparams)

    @property
    def where(self) -> str:
        return str(self.run.folder)

    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        make = _proto("summary").Summary
        values = [make.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        for name, path in images.items():
            content = path.read_bytes()
            width, height = struct.unpack(">II", content[16:24])  # of a PNG's first chunk
            image = make.Image(
                width=width, height=height, colorspace=4, encoded_image_string=content
            )
            values.append(make.Value(tag=name, image=image))
        self._add(step, summary=make(value=values))
        self._writer.flush()  # what is noted as written must be there after a kill

    def end(self, status: Status) -> None:
        """Write the status as a text; also as that of HParams, unless the run will go on."""
        text: Any = importlib.import_module("tensorboard.plugins.text.metadata")
        shape = _proto("tensor_shape").TensorShapeProto
        tensor = _proto("tensor").TensorProto(
            dtype=_proto("types").DT_STRING,
            string_val=[status.encode()],
            tensor_shape=shape(dim=[shape.Dim(size=1)]),
        )
        said = text.create_summary_metadata("status", "")
        self._add_value(self.run.restored, tag="status", metadata=said, tensor=tensor)
        if status not in ("preempted", "killed"):
            self._end_session("STATUS_SUCCESS" if status in DONE else "STATUS_FAILURE")
        self._writer.close()

    def _end_session(self, status: str) -> None:
        """Add the status for HParams; the library's own function for it needs TensorFlow."""
        data, metadata = _hparams("plugin_data_pb2"), _hparams("metadata")
        number = _hparams("api_pb2").Status.Value(status)
        info = data.SessionEndInfo(status=number, end_time_secs=time.time())
        content = data.HParamsPluginData(session_end_info=info)
        said = metadata.create_summary_metadata(content)
        tag, nothing = metadata.SESSION_END_INFO_TAG, metadata.NULL_TENSOR
        self._add_value(0, tag=tag, metadata=said, tensor=nothing)

    def _add_value(self, step: int, **content: Any) -> None:
        make = _proto("summary").Summary
        self._add(step, summary=make(value=[make.Value(**content)]))

    def _add(self, step: int, **content: Any) -> None:
        event = _proto("event").Event(step=step, wall_time=time.time(), **content)
        self._writer.add_event(event)


def _proto(name: str) -> Any:
    return importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")


def _hparams(name: str) -> Any:
    return importlib.import_module(f"tensorboard.plugins.hparams.{name}")


class WeightsAndBiases(Tracker):
    """Weights & Biases, offline: files in RUN/tracking/wandb, which `wandb sync` uploads.

    WANDB_MODE=online logs to the server, where you are logged in. WANDB_PROJECT, WANDB_ENTITY,
    WANDB_RUN_GROUP and WANDB_DIR act as usual. A run that goes on keeps its id; offline, each of
    its processes makes a folder.
    """

    package = "wandb"

    def __init__(self, run: TrackedRun):
        super().__init__(run)
        given = {
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",  # to the library's authors
            "WANDB_CACHE_DIR": str(run.store.absolute() / "cache"),
            "WANDB_DATA_DIR": str(run.store.absolute() / "data"),
        }
        for name, value in given.items():
            os.environ.setdefault(name, value)
        self._wandb: Any = importlib.import_module("wandb")
        self._run = self._wandb.init(
            id=run.identity,
            resume="allow",
            reinit="create_new",  # several runs at a time
            name=run.name,
            project=None if "WANDB_PROJECT" in os.environ else run.project,
            group=None if "WANDB_RUN_GROUP" in os.environ else run.group or None,
            dir=None if "WANDB_DIR" in os.environ else str(run.folder),
            config=run.config,
            settings=self._wandb.Settings(
                console="off", save_code=False, disable_git=True, x_disable_stats=True
            ),
        )

    @property
    def where(self) -> str:
        offline = self._run.settings.mode == "offline"
        return str(self.run.folder) if offline else self._run.url or str(self.run.folder)

    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        drawn = {name: self._wandb.Image(str(path)) for name, path in images.items()}
        self._run.log({**scalars, **drawn}, step=step)

    def end(self, status: Status) -> None:
        self._run.summary["status"] = status
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status in DONE else 1)


class Trackio(Tracker):
    """Trackio: a database in RUN/tracking/trackio, for a sweep or study in its own folder.

    TRACKIO_DIR names another folder; TRACKIO_SPACE_ID or TRACKIO_SERVER_URL logs to a server. Runs
    are found by name, so names end with the identity. Trackio has no status of a run; an alert
    tells it.
    """

    package = "trackio"

    def __init__(self, run: TrackedRun):
        super().__init__(run)
        os.environ.setdefault("TRACKIO_DIR", str(run.store.absolute()))
        self._trackio: Any = importlib.import_module("trackio")
        self._name = f"{run.name} {run.identity}"
        self._run = self._trackio.init(
            project=run.project,
            name=self._name,
            group=run.group or None,
            config=run.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    @property
    def where(self) -> str:
        return self._run.url or os.environ["TRACKIO_DIR"]

    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        drawn = {name: self._trackio.Image(str(path)) for name, path in images.items()}
        self._run.log({**scalars, **drawn}, step=step)

    def end(self, status: Status) -> None:
        levels = self._trackio.AlertLevel
        self._run.alert(f"run {status}", level=levels.INFO if status in DONE else levels.ERROR)
        self._run.finish()


class MLflow(Tracker):
    """MLflow: a database in RUN/tracking/mlflow, for a sweep or study in its own folder.

    MLFLOW_TRACKING_URI names another store or a server, and MLFLOW_EXPERIMENT_NAME the experiment.
    A run has the tags `group` and `status`; one that goes on is found by its identity.
    """

    package = "mlflow"
    _ENDED = dict.fromkeys(DONE, "FINISHED") | {"diverged": "FAILED", "failed": "FAILED"}
    _IDENTITY = "lora_jax.identity"

    def __init__(self, run: TrackedRun):
        super().__init__(run)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        tracking: Any = importlib.import_module("mlflow.tracking")
        self._entities: Any = importlib.import_module("mlflow.entities")
        made = run.store.absolute() / "mlflow.db"
        own = f"sqlite:///{made}"
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or own
        with FileLock(run.store / "opening.lock"):  # one process makes the tables
            if self._uri == own and not made.exists():
                # It takes seconds, and a process that is killed meanwhile must leave no half of it.
                new = made.with_suffix(".new")
                new.unlink(missing_ok=True)
                tracking.MlflowClient(tracking_uri=f"sqlite:///{new}")
                new.replace(made)
            self._client = tracking.MlflowClient(tracking_uri=self._uri)
            self._experiment = self._find_experiment(self._uri == own)
        by_identity = f"tags.`{self._IDENTITY}` = '{run.identity}'"
        if found := self._client.search_runs([self._experiment], by_identity):
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            self._client.set_tag(self._id, "status", "running")
        else:
            self._id = self._begin()

    def _find_experiment(self, own: bool) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.run.project
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return found.experiment_id
        files = (self.run.store.absolute() / "artifacts").as_uri() if own else None
        return self._client.create_experiment(name, artifact_location=files)

    def _begin(self) -> str:
        run = self.run
        tags = {self._IDENTITY: run.identity, "status": "running"}
        tags |= {"group": run.group} if run.group else {}
        made = self._client.create_run(self._experiment, run_name=run.name, tags=tags).info.run_id
        params = [
            self._entities.Param(name, str(value)[:500]) for name, value in run.settings.items()
        ]
        for start in range(0, len(params), 100):  # the most that a request may have
            self._client.log_batch(made, params=params[start : start + 100])
        return made

    @property
    def where(self) -> str:
        if self._uri.startswith("http"):
            return f"{self._uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self._id}"
        return self._uri

    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, x, now, step) for name, x in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics)
        for path in images.values():
            self._client.log_artifact(self._id, str(path), "images")

    def end(self, status: Status) -> None:
        self._client.set_tag(self._id, "status", status)
        self._client.set_terminated(self._id, self._ENDED.get(status, "KILLED"))


TRACKERS: Mapping[str, type[Tracker]] = {
    kind.package: kind for kind in (MLflow, TensorBoard, Trackio, WeightsAndBiases)
}
"""The project's own trackers, by name."""


def find(name: str) -> type[Tracker]:
    """The project's tracker of a name, or the one in the module that a dotted name imports.

    Raises:
      ModuleNotFoundError: there is no such module, or it imports one that is not there.
      ValueError: the module does not define exactly one tracker.
    """
    if name in TRACKERS:
        return TRACKERS[name]
    module = importlib.import_module(name)
    classes = (each for each in vars(module).values() if isinstance(each, type))
    own = [each for each in classes if each.__module__ == name and issubclass(each, Tracker)]
    if len(own) != 1:
        raise ValueError(f"'{name}' must define one Tracker, and defines {len(own)}")
    return own[0]


def is_installed(package: str) -> bool:
    """Whether a package could be imported, without doing so; an empty name is not a package."""
    try:
        return not package or importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a package that would hold it
        return False
