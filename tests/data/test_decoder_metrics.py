"""Scores of decoders: options and completions, against their formulas."""

import dataclasses
import math

import numpy as np
import pytest
from one_line import refuses

from lora_jax.data.examples import Prompts
from lora_jax.data.metrics import label_metrics
from lora_jax.data.task import TextTask
from lora_jax.data.tokenizing.encode_prompts import option_outputs


def questions(counts, seed=0):
    rng = np.random.default_rng(seed)
    options = [[f"option {c}" for c in range(count)] for count in counts]
    answers = np.array([rng.integers(count) for count in counts])
    return Prompts(
        "q", [f"{i}?" for i in range(len(counts))], ["x"] * len(counts), options, answers
    )


def texts(count=5):
    return Prompts("t", [f"{i}" for i in range(count)], ["x"] * count)


def scored(part, seed):
    """Outputs of options with known log-likelihoods, and what they score, one by one."""
    rng = np.random.default_rng(seed)
    loglik = [rng.normal(-5, 2, len(each)) for each in part.options]
    offsets = np.cumsum([0, *map(len, loglik)])
    right = [values.argmax() == answer for values, answer in zip(loglik, part.answers, strict=True)]
    loss = [
        math.log(np.exp(values).sum()) - values[answer]
        for values, answer in zip(loglik, part.answers, strict=True)
    ]
    outputs = option_outputs(np.concatenate(loglik), offsets)
    return outputs, np.mean(right), np.mean(loss)


def test_the_loss_of_a_token_is_over_all_tokens():
    logs, tokens = np.array([[-3.0], [-8.0], [-1.0]]), np.array([2, 3, 1])
    found = label_metrics.score(("token_loss", "perplexity"), logs, tokens)
    assert found == {"token_loss": pytest.approx(2), "perplexity": pytest.approx(math.exp(2))}
    # A model that knows nothing of 10 words has a perplexity of 10, however long its texts are.
    even = -np.log(10.0) * tokens[:, None]
    assert label_metrics.score(("perplexity",), even, tokens)["perplexity"] == pytest.approx(10)


def test_losses_that_are_no_numbers_are_infinite():
    for value in (np.nan, -np.inf):
        logs = np.array([[-3.0], [value]])
        found = label_metrics.score(("token_loss", "perplexity"), logs, np.array([1, 1]))
        assert found == {"token_loss": math.inf, "perplexity": math.inf}
    found = label_metrics.score(("token_loss", "perplexity"), np.array([[-1e4]]), np.array([1]))
    assert found == {"token_loss": 1e4, "perplexity": math.inf}


def test_a_part_without_options_needs_its_tokens():
    task = TextTask("t", texts(), texts(3), extra={"more": texts(2)})
    outputs = {"validation": np.array([[-1.0], [-2.0], [-3.0]]), "more": np.array([[-5.0], [-1]])}
    tokens = {"validation": np.array([1, 1, 1]), "more": np.array([2, 1])}
    found = label_metrics.score_parts(task, outputs, tokens)
    assert found == {
        "token_loss": pytest.approx(2),
        "perplexity": pytest.approx(math.exp(2)),
        "token_loss_more": pytest.approx(2),
        "perplexity_more": pytest.approx(math.exp(2)),
    }
    assert set(task.metrics) <= found.keys()
    refuses(
        "task 't': the numbers of tokens of part 'more' are missing",
        label_metrics.score_parts,
        task,
        outputs,
        {"validation": tokens["validation"]},
    )
    refuses(
        "3 outputs cannot be scored against 2 labels",
        label_metrics.score_parts,
        task,
        outputs,
        {"validation": tokens["more"]},
    )
    refuses(
        "task 't' has no part 'mor'; nearest: 'more'",
        label_metrics.score_parts,
        task,
        {"mor": outputs["more"]},
        tokens,
    )


def test_questions_with_unlike_numbers_of_options():
    part = questions([2, 5, 3, 4] * 10)
    task = TextTask("q", part, part)
    outputs, accuracy, loss = scored(part, 1)
    assert 0.1 < accuracy < 0.9
    found = label_metrics.score_parts(task, {"validation": outputs})
    assert found["accuracy"] == accuracy
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-6)
    assert found.keys() == set(task.metrics)


def test_the_mean_over_the_sets_of_a_joint_task():
    sets = {"a": questions([2] * 20, 1), "b": questions([4] * 30, 2), "c": questions([3] * 10, 3)}
    task = TextTask("joint", texts(), texts(1), extra=sets)
    made = {name: scored(part, seed) for seed, (name, part) in enumerate(sets.items())}
    outputs = {name: each[0] for name, each in made.items()}
    found = label_metrics.score_parts(task, outputs)
    for name, (_, accuracy, loss) in made.items():
        assert found[f"accuracy_{name}"] == accuracy
        assert found[f"eval_loss_{name}"] == pytest.approx(loss, rel=1e-6)
    assert found["accuracy_mean"] == pytest.approx(np.mean([each[1] for each in made.values()]))
    assert len({each[1] for each in made.values()}) > 1
    # Not over some of the sets, and not where there is one.
    some = {name: outputs[name] for name in ("a", "b")}
    assert "accuracy_mean" not in label_metrics.score_parts(task, some)
    one = dataclasses.replace(task, extra={"a": sets["a"]})
    assert "accuracy_mean" not in label_metrics.score_parts(one, {"a": outputs["a"]})
