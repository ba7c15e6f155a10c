"""What the Hugging Face Hub reads of a model card: the YAML at its beginning."""

from collections.abc import Iterable, Sequence

from huggingface_hub import EvalResult, ModelCardData

from configs.settings import ClassifierConfig, RunConfig
from experiments.analysis.recorded_runs import held_out
from experiments.exports.card_origin import is_made
from experiments.exports.card_scores import Score
from experiments.exports.format import Format
from experiments.exports.place import published
from experiments.runs.finished_run import FinishedRun
from lora_jax.data import SPECS
from lora_jax.metrics.label_metrics import LOWER_IS_BETTER

HUB_METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "rouge_l": "rouge",
    "eval_loss": "loss",
    "token_loss": "loss",
}
"""The Hub's names of metrics, where they differ from ours."""


def metadata(run: FinishedRun, chosen: Format, found: Sequence[Score], title: str) -> ModelCardData:
    """The metadata of a run's card; what the record does not say is left out.

    Args:
      found: the scores of the run.
      title: the name of the model.
    """
    config, base = run.config, published(run)
    stored = config.quantize.storage
    tags = ["lora-jax", config.variant.name.rpartition(".")[2], *([stored] * (stored != "none"))]
    main = [each for each in found if each.metric not in LOWER_IS_BETTER and each.part]
    return ModelCardData(
        base_model=base,
        base_model_relation=base and chosen.relation,
        library_name=chosen.library or None,
        pipeline_tag=task_type(config),
        tags=tags,
        datasets=None if is_made(run) else _data_sets(config),  # those of training
        metrics=_distinct(_hub_metric(each) for each in main) or None,
        model_name=title,
        # Of what was not trained here, the head may be a new one, which the scores do not show.
        eval_results=[_result(run, each) for each in found if each.part and not is_made(run)]
        or None,
    )


def task_type(config: RunConfig) -> str:
    """The Hub's name of the task."""
    is_classifier = isinstance(config, ClassifierConfig)
    return "text-classification" if is_classifier else "text-generation"


def _data_sets(config: RunConfig) -> list[str] | None:
    """The Hub's name of the data, of tasks that have the same name there; files are anyone's."""
    if config.data.source == "demo":
        return [config.data.name]
    if config.data.source != "files" and config.data.name in SPECS:
        return [config.data.name.partition("/")[0]]
    return None


def _result(run: FinishedRun, score: Score) -> EvalResult:
    config, task = run.config, run.experiment.texts.task
    known = SPECS.get(config.data.name) if config.data.source != "files" else None
    splits = {part.name: part.split or None for part in known.parts} if known else {}
    family, _, own = config.data.name.partition("/") if known else (config.data.name, "", "")
    parts = {"validation": task.validation, **task.extra}
    return EvalResult(
        task_type=task_type(config),
        dataset_type=family,
        dataset_config=own or None,
        dataset_name=parts[str(score.part)].name,
        dataset_split=None if held_out(config) else splits.get(str(score.part)),
        metric_type=_hub_metric(score),
        metric_name=score.name,
        metric_value=score.value,
    )


def _hub_metric(score: Score) -> str:
    return HUB_METRICS.get(score.metric, score.metric)


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
