"""From flags to trials: what a sweep varies, what is refused, and what trials will take."""

import json
import math

import numpy as np
import pytest
import small_model
from commands import ROOT
from hypothesis import given, strategies as st
from quickstart_sweep import SMOKE, made as smoke_made
from scipy import stats

from configs import glue, quickstart
from experiments.setup.config import fill
from experiments.setup.config_flags import read_config
from experiments.sweeps import preflight, sweep_flag, trials
from experiments.sweeps.sweep_flag import Range, Values
from lora_jax.files.json_text import config_digest

# How ml_collections loads a config's file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
FILE = str(ROOT / "configs" / "glue.py")
GLUE = [f"--config={FILE}:task=cola,source=tsv,folder=F", "--config.train.max_steps=20"]
RATE = "config.optimizer.learning_rate"


def made(*specs, arguments=GLUE, file=FILE, **how):
    overrides = trials.overrides_of(file, specs, arguments=arguments, **how)
    return trials.make(arguments, overrides)


def names(*specs, **how):
    return [trial.name for trial in made(*specs, **how)]


@pytest.mark.parametrize(
    ("spec", "axis"),
    [
        ("variant=lora,dora", Values("variant", ("lora", "dora"))),
        ("config.seed=0:5", Values("config.seed", ("0", "1", "2", "3", "4"))),
        ("config.seed=0:10:2", Values("config.seed", ("0", "2", "4", "6", "8"))),
        ("config.seed=3:0:-1,7", Values("config.seed", ("3", "2", "1", "7"))),
        ("config.a='0:5'", Values("config.a", ("0:5",))),
        ("config.a=(),('x,y','z')", Values("config.a", ("()", "('x,y','z')"))),
        ('config.a="a,b",c', Values("config.a", ("a,b", "c"))),
        ("config.a=log:1e-5:1e-2", Range("config.a", "log", 1e-5, 1e-2)),
        ("config.a=uniform:0:0.3", Range("config.a", "uniform", 0.0, 0.3)),
        ("config.a=C:1:x", Values("config.a", ("C:1:x",))),
    ],
)
def test_what_a_flag_says(spec, axis):
    assert sweep_flag.parse(spec) == axis


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("variant", "expected KEY=VALUES"),
        ("=3", "expected KEY=VALUES"),
        ("config.seed=", "a value is missing"),
        ("config.seed=1,,2", "a value is missing"),
        ("config.seed=5:5", "the range 5:5 is empty"),
        ("config.seed=0:5:0", "the range 0:5:0 is empty"),
        ("config.a=lg:1e-5:1e-2", "unknown 'lg'; nearest: 'log'"),
        ("config.a=log:0:1", "0 has no logarithm"),
        ("config.a=log:1e-5", "expected log:LOW:HIGH, such as log:1e-5:1e-2"),
        ("config.a=uniform:0:x", "expected uniform:LOW:HIGH"),
        ("config.a=3,uniform:0:1", "uniform:0:1 cannot be listed with other values"),
        ("config.a=log:1e-2:1e-5", "0.01 is not below 1e-05"),
        ("config.a=uniform:0:inf", "expected uniform:LOW:HIGH"),
        ("config.a=uniform:nan:1", "expected uniform:LOW:HIGH"),
        ("config.a=log:1_0:2_0", "expected log:LOW:HIGH"),
        ("config.a=log:1e-400:1", "expected log:LOW:HIGH"),
        ("config.a=uniform:0:1,3", "uniform:0:1 cannot be listed with other values"),
        ("config.a=(1,2", r"\( is not closed"),
        ("config.a='x", "' is not closed"),
        ("config.a=1)", r"'\)' closes nothing"),
        ("optimizer.learning_rate=1", "nearest: 'config.optimizer.learning_rate'"),
        ("config.a b=1", "is not a name of a setting"),
        ("config=1", "name a setting"),
    ],
)
def test_a_flag_that_says_nothing(spec, said):
    with pytest.raises(ValueError, match=f"^--sweep=.*{said}"):
        sweep_flag.parse(spec)


def test_a_grid_has_every_combination_the_last_key_quickest():
    found = made("variant=lora,dora", f"{RATE}=1e-4,3e-4", "config.seed=0:3")
    assert len(found) == 12
    assert [trial.name for trial in found[:4]] == [
        "variant=lora,learning_rate=0.0001,seed=0",
        "variant=lora,learning_rate=0.0001,seed=1",
        "variant=lora,learning_rate=0.0001,seed=2",
        "variant=lora,learning_rate=0.0003,seed=0",
    ]
    assert found[-1].overrides == {"variant": "dora", RATE: "3e-4", "config.seed": "2"}
    assert found[-1].arguments == (
        f"--config={FILE}:task=cola,source=tsv,folder=F,variant=dora",
        "--config.train.max_steps=20",
        f"--{RATE}=3e-4",
        "--config.seed=2",
    )


def test_a_trials_config_is_the_one_that_its_flags_make():
    (trial,) = made("variant=adalora", f"{RATE}=3e-4", "config.also_train=('classifier/.*',)")
    config = glue.get_config("task=cola,source=tsv,folder=F,variant=adalora")
    changes = {"train.max_steps": 20, "optimizer.learning_rate": 3e-4}
    config.update_from_flattened_dict(changes | {"also_train": ("classifier/.*",)})
    filled = fill(config.to_dict())
    assert trial.config.plain == filled
    assert trial.digest == config_digest(filled)
    assert fill(read_config(trial.arguments).to_dict()) == filled


def test_zip_pairs():
    assert names("variant=lora,dora", "config.seed=4:6", paired=True) == [
        "variant=lora,seed=4",
        "variant=dora,seed=5",
    ]
    assert names("variant=lora,lora", "config.seed=4:6", paired=True)[1] == "variant=lora,seed=5"
    with pytest.raises(ValueError, match="--zip pairs lists of one length: variant has 2, config"):
        names("variant=lora,dora", "config.seed=0:3", paired=True)


def test_drawing_is_the_same_again_and_more_trials_begin_with_the_same_ones():
    specs = (f"{RATE}=log:1e-5:1e-2", "config.variant.rank=log:2:64", "variant=lora,dora")
    ten, twenty = (made(*specs, trials=count) for count in (10, 20))
    assert [trial.digest for trial in ten] == [trial.digest for trial in twenty[:10]]
    assert made(*specs, trials=10, seed=1)[0].digest != ten[0].digest
    turned = made(*specs[::-1], trials=10)
    assert [trial.digest for trial in turned] == [trial.digest for trial in ten]
    assert {type(trial.config.variant.settings["rank"]) for trial in twenty} == {int}
    many = sweep_flag.draw([sweep_flag.parse(specs[0])], 2000, 0, lambda key: False)
    logs = [math.log10(float(each[RATE])) for each in many]
    assert -5 <= min(logs) < -4.98
    assert -2.02 < max(logs) <= -2
    assert abs(sum(logs) / len(logs) + 3.5) < 4 * 3 / math.sqrt(12 * 2000)  # of the mean's error


def test_integers_of_a_range_are_as_likely_as_each_other():
    """Uniformly, or by the logarithm of the interval that rounds to each."""
    for kind, first, last in (("uniform", 1, 4), ("log", 1, 8)):
        axis = sweep_flag.parse(f"config.seed={kind}:{first}:{last}")
        drawn = [int(sweep_flag._drawn(axis, str(n), lambda _: True)) for n in range(4000)]
        edges = np.arange(first, last + 2) - 0.5
        shares = np.diff(np.log(edges) if kind == "log" else edges)
        found = np.bincount(drawn, minlength=last + 1)[first:]
        assert stats.chisquare(found, 4000 * shares / shares.sum()).pvalue > 1e-3
    with pytest.raises(ValueError, match=r"--sweep=config.seed=uniform:1.2:1.8 has no integer"):
        sweep_flag.draw([sweep_flag.parse("config.seed=uniform:1.2:1.8")], 1, 0, lambda _: True)


def test_a_list_is_drawn_from_without_repetition():
    found = names("variant=lora,dora", "config.seed=0:3", trials=6)
    assert len(set(found)) == 6
    with pytest.raises(ValueError, match="--trials=7: only 6 different ones"):
        names("variant=lora,dora", "config.seed=0:3", trials=7)


@pytest.mark.parametrize(
    ("specs", "how", "said"),
    [
        ((), {}, "nothing to sweep: give --sweep=KEY=VALUES"),
        (("variant=lora", "variant=dora"), {}, "variant is swept twice"),
        (
            (f"{RATE}=log:1e-5:1e-2",),
            {},
            "is a range; add --trials=N to say how many values to draw",
        ),
        (("variant=lora",), {"trials": 1, "paired": True}, "without --zip"),
        (("task=rte",), {}, "task is swept, and set for all trials"),
        (("config.train.max_steps=1,2",), {}, "config.train.max_steps is swept, and set for all"),
        (("variant='lora,dora'",), {}, "an argument of a config cannot hold a comma"),
        (("config.seed=1,1",), {}, "--sweep=config.seed: the value 1 is given twice"),
        ((f"{RATE}=1e-3,0.001",), {}, f"two trials are the same: {RATE}=1e-3 and {RATE}=0.001"),
        (("config.seed=1,2", "seed=1:3"), {}, "two trials are the same"),
        (("config.optimizer.learning_rat=1",), {}, f"nearest: {RATE}"),
        (("learning_rate=1,2",), {}, f"no argument 'learning_rate'.*swept by its path, {RATE}$"),
        (("lr=1,2",), {}, f"no argument 'lr'.*; a setting is swept by its path, {RATE}$"),
        (("zzzz=1,2",), {}, f"no argument 'zzzz'.*; a setting is .* its path, such as {RATE}$"),
        (("varient=lora,dora",), {}, "^every trial: .* no argument 'varient'.*: 'variant"),
        (("config.seed=1.5",), {}, r"config\.seed=1\.5: expected a whole number"),
        (
            ("config.seed=0-5",),
            {},
            "seed=0-5: expected a whole",
        ),
        (("config.seed.more=1",), {}, "config.seed.more: no such setting; config.seed is a sing"),
        (("config.data.source.more=1",), {}, "config.data.source is a single one"),
        (("config.variant=4",), {}, "config.variant=4"),
        (("config.optimizer=adam",), {}, "nearest: --config.optimizer"),
    ],
)
def test_what_is_no_sweep(specs, how, said):
    with pytest.raises(ValueError, match=said) as caught:
        names(*specs, **how)
    assert len(str(caught.value).splitlines()) == 1


HUGE = 10**30


@pytest.mark.parametrize(
    ("specs", "how", "said"),
    [
        (("config.seed=0:100001",), {}, "--sweep=config.seed=0:100001: 100,001 trials; a sweep"),
        ((f"config.seed=0:{HUGE}",), {}, f"{HUGE:,} trials; a sweep has at most 100,000"),
        ((f"config.seed={HUGE}:0:-3,7",), {}, f"{HUGE // 3:,} trials"),
        (("config.seed=0:400", "config.train.epochs=1:400"), {}, "combination.*: 159,600 trials"),
    ],
)
def test_what_is_too_much_is_refused_before_it_is_counted_out(specs, how, said):
    with pytest.raises(ValueError, match=said):
        trials.overrides_of(FILE, specs, arguments=GLUE, **how)


@given(*[st.integers(-40, 40)] * 2, st.integers(-7, 7).filter(bool))
def test_ranges_are_counted_as_python_counts_them(start, stop, step):
    """Against `range`, and the limit itself against its `len`."""
    values = [str(value) for value in range(start, stop, step)]
    spec = f"config.a={start}:{stop}:{step}"
    if not values:
        with pytest.raises(ValueError, match="is empty"):
            sweep_flag.parse(spec)
        return
    assert sweep_flag.parse(spec) == Values("config.a", tuple(values))


def test_a_configs_own_sweep_that_never_ends(tmp_path):
    file = tmp_path / "endless.py"
    text = "import itertools\n\ndef sweep():\n"
    text += "    return ({'config.seed': n} for n in itertools.count())\n"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"endless.py: sweep\(\): 100,001 trials; a sweep has at"):
        trials.own_sweep(str(file))
    own = [{"a": str(n)} for n in range(400)]
    with pytest.raises(ValueError, match="times what --sweep says: 160,000 trials"):
        list(sweep_flag.times(own, [{"b": str(n)} for n in range(400)]))


def test_all_wrong_trials_are_named_and_equal_mistakes_said_once():
    with pytest.raises(ValueError, match="model 'minilmm': expected one of minilm") as caught:
        names("model=minilm,minilmm,bert", "config.seed=0:2")
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        "model=minilmm,config.seed=0; model=minilmm,config.seed=1: model 'minil"
    )
    assert "model=bert,config.seed=1: model 'bert'" in second
    with pytest.raises(ValueError, match=r"^every trial: config\.sed: no such setting"):
        names("config.sed=0:2")


def test_names_are_unique_safe_and_do_not_depend_on_how_a_number_is_written():
    assert names(f"{RATE}=1e-4,0.0002,.001") == [
        "learning_rate=0.0001",
        "learning_rate=0.0002",
        "learning_rate=0.001",
    ]
    assert names("config.train.target_score=-0.5") == ["target_score=-0.5"]
    assert names("config.model.dropout=true,false") == ["dropout=true", "dropout=false"]
    assert names("config.variant.dropout=0.1", "config.model.dropout=true") == [
        "variant.dropout=0.1,model.dropout=true"
    ]
    strange = names("config.data.extra=a/b,a b," + "x" * 300)
    assert [name[:10] for name in strange] == ["extra=a-b-", "extra=a-b-", "extra=xxxx"]
    assert len(set(strange)) == 3
    assert all(len(name) < 130 and not set(name) & set("/ ") for name in strange)


def test_a_config_with_a_sweep_of_its_own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from configs.quickstart import get_config\n\n\ndef sweep():\n"
        "    for variant in ('lora', 'vera'):\n"
        "        yield {'variant': variant, 'config.targets': ('up/kernel', 'down/kernel'),\n"
        "               'config.model.dropout': True}\n"
    )
    arguments = [f"--config={file}:size=smoke"]
    found = made("config.seed=3,4", arguments=arguments, file=str(file))
    assert [(t.config.variant.name, t.config.seed) for t in found] == [
        ("lora", 3),
        ("lora", 4),
        ("vera", 3),
        ("vera", 4),
    ]
    config = quickstart.get_config("size=smoke,variant=vera")
    changes = {"targets": ("up/kernel", "down/kernel"), "model.dropout": True, "seed": 4}
    config.update_from_flattened_dict(changes)
    assert found[-1].config.plain == fill(config.to_dict())
    assert len(made(arguments=arguments, file=str(file))) == 2
    assert len(made(arguments=arguments, file=str(file), paired=True)) == 2
    with pytest.raises(ValueError, match=r"--trials=5 draws .* no --sweep: leave --trials out"):
        made(arguments=arguments, file=str(file), trials=5)
    with pytest.raises(ValueError, match=r"variant is swept by the config's sweep\(\) and by --"):
        made("variant=dora", arguments=arguments, file=str(file))
    file.write_text("def get_config():\n    pass\n\n\ndef sweep():\n    yield {'optimizer.b': 1}\n")
    with pytest.raises(ValueError, match=r"unknown key 'optimizer.b'; nearest: 'config"):
        trials.own_sweep(str(file))
    file.write_text("def sweep():\n    yield 3\n")
    with pytest.raises(ValueError, match=r"sweep\(\) yields 3: expected a dict"):
        trials.own_sweep(str(file))


PISSA = "--config.variant.initialization=pissa"


@pytest.mark.parametrize(
    ("specs", "more", "said"),
    [
        (
            ("variant=lora,lorra", "config.variant.rank=8,999"),
            [PISSA],
            [
                "variant=lora,rank=999: 'layers/attention/key/kernel': initialization 'pissa' ta",
                "variant=lorra,rank=8; variant=lorra,rank=999: unknown variant 'lorra'",
            ],
        ),
        (
            ("config.data.source=demmo", "config.seed=0:3"),
            [],
            ["every trial: unknown data.source 'demmo'; nearest: 'demo'"],
        ),
        (
            ("config.targets='quary/kernel'",),
            [],
            ["matches no weight; nearest: 'layers/attention/query/kernel'"],
        ),
        (
            ("config.optimizer.warmup_steps=8,2",),
            [],
            ["warmup_steps=8: config.optimizer.warmup_steps 8 leaves nothing of 8 steps"],
        ),
        (
            ("config.data.max_length=2,8",),
            [],
            ["max_length=2: data set 'rotten_tomatoes/train': max_length 2 leaves no"],
        ),
    ],
)
def test_all_that_is_wrong_is_said_before_anything_starts(specs, more, said):
    with pytest.raises(ValueError, match=": ") as caught:
        preflight.check_trials(smoke_made(*specs, arguments=[*SMOKE, *more]))
    lines = [line.strip() for line in str(caught.value).splitlines()]
    for line, part in zip(lines, said, strict=True):
        assert part in line


def test_a_model_without_its_weights_is_found_before_anything_starts(tmp_path):
    folder = small_model.write(tmp_path / "bert")
    found = smoke_made("config.seed=0:2", arguments=[*SMOKE, f"--config.model.name={folder}"])
    assert len(preflight.check_trials(found)) == 2
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    said = r"^every trial: .*has shape \(16, 32\), config.json asks for \(16, 48\)"
    with pytest.raises(ValueError, match=said):
        preflight.check_trials(found)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"^every trial: {folder}: neither model.safetensors nor"):
        preflight.check_trials(found)
