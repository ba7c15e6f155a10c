"""Scores of generated texts against references, by the libraries that papers use.

LoRA papers report scores on E2E from its `measure_scores.py`. Of these, only BLEU is here, as
`bleu_lowercase`: mteval-v13a's BLEU ignoring case, which sacreBLEU reproduces. The other scores
are not here, and a score with a similar name is a different number:

* ROUGE-L there is COCO's: an F-measure of the best precision and the best recall over the
  references, in which recall counts 1.44 times. `rouge_l` is Google's rouge-score: the mean over
  texts of the F1 with the best reference. Its own tokenizer keeps only `a` to `z` and digits, so
  that texts in other scripts score 0; `words` replaces it.
* NIST is left out. nltk's `corpus_nist` takes the best single reference; mteval-v13a matches
  against all references at once and uses their mean length. With several references they differ.
* METEOR 1.5 and CIDEr are left out. They are COCO's too, and need Java and a download.
"""

import functools
import importlib
import importlib.metadata
import re
import types
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_jax.data.examples import Prompts
from lora_jax.messages import nearest, require_known

_ANSWERS = {
    "true": "true|false",
    "false": "true|false",
    "answer": "answer[1-5]",
    "solution": "solution[12]",
    "ending": "ending[1-4]",
    "option": "option[12]",
}
_MISSING = {
    "nist": "nltk's differs from mteval-v13a's where there are several references",
    "meteor": "METEOR 1.5 needs Java and a download",
    "cider": "COCO's CIDEr needs Java, for its tokenizer",
}


_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # ideographs
)


class Scored(NamedTuple):
    """A score, and a signature that says how it was computed; report both."""

    value: float
    signature: str


def bleu(
    texts: Sequence[str], references: Sequence[Sequence[str]], lowercase: bool = False
) -> Scored:
    """Corpus BLEU-4 (Papineni et al., 2002) by sacreBLEU (Post, 2018), 0 to 100.

    Its tokenizer `13a` splits words at spaces and punctuation. It does not split Chinese, Japanese
    or Thai, where a whole sentence is one word; `chrf` suits these.

    Args:
      texts: (n,) generated texts.
      references: one or more for each text; their number may differ between texts.
      lowercase: ignore case, as mteval-v13a does by default and E2E's and WebNLG's scripts do.

    Raises:
      ValueError: no texts, a different number of texts and references, or a text without
        references.
      ModuleNotFoundError: sacreBLEU is not installed.
    """
    _require_references(texts, references)
    # `force` silences a warning about tokenised texts, which is meant for translations.
    metric = _library("sacrebleu").BLEU(lowercase=lowercase, force=True)
    return _sacre(metric, texts, references)


def chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    """Corpus chrF2 (Popović, 2015) by sacreBLEU, 0 to 100; as `bleu`."""
    _require_references(texts, references)
    return _sacre(_library("sacrebleu").CHRF(), texts, references)


def rouge_l(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    """Mean F1 of the longest common subsequence (Lin, 2004) by rouge-score, 0 to 100; as `bleu`.

    With several references, the largest F1 counts; no stemming. The tokens are those of `words`.
    """
    _require_references(texts, references)
    library = _library("rouge_score.rouge_scorer")
    scorer = library.RougeScorer(["rougeL"], tokenizer=types.SimpleNamespace(tokenize=words))
    found = [
        scorer.score_multi(list(each), text)["rougeL"].fmeasure
        for text, each in zip(texts, references, strict=True)
    ]
    version = importlib.metadata.version("rouge-score")
    signature = f"rougeL|f1|best|stemmer:no|tok:unicode|version:{version}"
    return Scored(100 * float(np.mean(found)), signature)


def words(text: str) -> list[str]:
    """The lower-case words of a text in any script; of ASCII, those of rouge-score's tokenizer.

    A word is a run of letters and digits, with their combining marks. In scripts without spaces
    between words (Chinese characters, kana, Thai, Lao, Burmese, Khmer), each character is a word.
    Joiners and soft hyphens are left out. Everything else separates words.
    """
    found: list[str] = []
    first = ""  # the first character of the word that goes on; empty between words
    for char in unicodedata.normalize("NFC", text.lower()):
        category = unicodedata.category(char)
        if category == "Cf":  # joiners and soft hyphens, within words
            continue
        kind = category[0]
        if kind in "LN" and (not first or _SPACELESS.match(first) or _SPACELESS.match(char)):
            found.append(char)
            first = char
        elif first and kind in "LNM":
            found[-1] += char
        else:
            first = ""
    return found


def exact_match(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    """The percentage of texts that equal one of their references, ignoring outer whitespace."""
    _require_references(texts, references)
    found = [
        text.strip() in [reference.strip() for reference in each]
        for text, each in zip(texts, references, strict=True)
    ]
    return Scored(100 * float(np.mean(found)), "exact|strip")


def score_texts(
    names: Sequence[str], texts: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Scored]:
    """The scores of the given names, which are keys of `TEXT_METRICS`.

    Raises:
      ValueError: an unknown name; a score that is left out (the message says why); or as in `bleu`.
      ModuleNotFoundError: as in `bleu`.
    """
    check_names(names)
    return {name: TEXT_METRICS[name](texts, references) for name in names}


def check_names(names: Sequence[str], *others: str) -> None:
    """Raise a ValueError for a name that is neither in `TEXT_METRICS` nor in `others`."""
    known = (*TEXT_METRICS, *others)
    for name in names:
        if name in _MISSING:
            raise ValueError(f"there is no metric '{name}': {_MISSING[name]}")
        require_known(name, known, f"unknown metric '{name}' of texts")


def extract_answer(text: str, kind: str) -> str:
    """The first answer that a generated text names, by LLM-Adapters' rule; empty if there is none.

    Args:
      kind: any answer of the question's set, with or without its number: `true`, `answer`,
        `solution2`, ... Case matters.

    Raises:
      ValueError: an unknown kind.
    """
    known = kind.rstrip("12345")
    if known not in _ANSWERS:
        raise ValueError(f"unknown kind of answer '{kind}'; nearest: {nearest(kind, _ANSWERS)}")
    found = re.search(_ANSWERS[known], text)
    return found.group() if found else ""


def extracted_answers(texts: Sequence[str], prompts: Prompts) -> np.ndarray:
    """The index of the option that each generated text names, int64 (n,); -1 if it names none.

    The share that equals `prompts.answers` is the accuracy that LLM-Adapters and DoRA report. An
    option's last word is its answer (`the correct answer is answer1`).

    Raises:
      ValueError: a different number of texts and prompts, no options, or a question whose first
        option ends in no known answer.
    """
    if prompts.options is None:
        raise ValueError(f"data set {prompts.name!r} has no options")
    if len(texts) != len(prompts):
        raise ValueError(f"{len(texts)} texts for {len(prompts)} prompts of {prompts.name!r}")
    found = []
    for text, options in zip(texts, prompts.options, strict=True):
        words = [option.split()[-1] for option in options]
        answer = extract_answer(text, words[0])
        found.append(words.index(answer) if answer in words else -1)
    return np.array(found, np.int64)


def _require_references(texts: Sequence[str], references: Sequence[Sequence[str]]):
    if not texts or len(texts) != len(references):
        raise ValueError(
            f"{len(texts)} texts cannot be scored against references of {len(references)} texts"
        )
    for index, each in enumerate(references):
        if isinstance(each, str) or not each:
            raise ValueError(f"references[{index}] is {each!r}: expected one or more texts")


def _sacre(metric: Any, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    most = max(len(each) for each in references)
    # sacreBLEU takes the first references of all texts, then the second ones, ...: None if absent.
    streams = [[each[i] if i < len(each) else None for each in references] for i in range(most)]
    score = metric.corpus_score(list(texts), streams).score
    return Scored(float(score), str(metric.get_signature()))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'scores of texts need {error.name}: pip install "lora-jax[decoders]"', name=error.name
        ) from None


TEXT_METRICS: Mapping[str, Callable[[Sequence[str], Sequence[Sequence[str]]], Scored]] = {
    "bleu": bleu,
    "bleu_lowercase": functools.partial(bleu, lowercase=True),
    "chrf": chrf,
    "rouge_l": rouge_l,
    "exact_match": exact_match,
}
