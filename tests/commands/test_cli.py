"""Mistakes on the command line: each ends with one line, before anything is built."""

import os
import re
import subprocess
import sys

import commands
import pytest
import small_model
from absl import flags
from commands import ROOT

from experiments import cli, command_names
from experiments.setup.config_flags import read_config
from experiments.sweeps import jobs, trials
from experiments.sweeps.launchers.launch import LAUNCHERS
from lora_jax.files import full_disk

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

SMOKE = "configs/quickstart.py:size=smoke"


TRAIN = f"train --workdir=OUT --config={SMOKE}"
STUDY = "tune --workdir=OUT --study=against_lora"
SWEEP = f"sweep --workdir=OUT --config={SMOKE}"
SEARCH = f"{SWEEP} --sweep=config.optimizer.learning_rate=log:1e-4:1e-1"
DRAWN, WHOLE = "--documents times nothing", "--documents writes whole tables"
DEFAULTS = "--documents: the tables in documents use the default; leave"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"train --config={SMOKE}", "--workdir is missing: "),
        ("train --workdir=OUT --config=configs/quikstart.py", "nearest: 'configs/quickstart.py'"),
        (
            "train --workdir=OUT --config=configs/quickstart.py:sizes=smoke",
            "'sizes=smoke': expected one of variant",
        ),
        (
            f"{TRAIN},seed=abc",
            "'seed=abc': expected one of variant, size, storage=...; settings are flags, as in "
            "--config.seed=abc",
        ),
        (f"{TRAIN},variant=dora,rank=4", "; settings are flags, as in --config.variant.rank=4"),
        (f"{TRAIN} --mesh=2", "at most one -1, such as 2,1,1"),
        (f"{TRAIN} --devices=2 --mesh=4,1,1", "--mesh=4,1,1 needs 4 devices; there are 2"),
        (f"{TRAIN} --devices=0", "error: flag --devices=0: expected "),
        (
            f"{TRAIN} --config.data.name=imdb",
            "unknown data.name 'imdb': there are rotten_tomatoes, glue/cola, ",
        ),
        (f"{TRAIN} --config.variant.rnk=4", "no setting 'rnk'; nearest: 'rank'"),
        (
            f"{TRAIN} --config.varient.rank=4",
            "error: config.varient.rank: no such setting; it is config.variant.rank",
        ),
        (
            f"{TRAIN} --config.optimizer.learing_rate=1",
            "learing_rate: no such setting; nearest: config.optimizer.learning_rate, ",
        ),
        (f"{TRAIN} --config.variant.rank=many", "--config.variant.rank=many"),
        (f"{TRAIN} --wrkdir=x", "error: no flag --wrkdir; nearest: --workdir"),
        (f"{TRAIN} stray", "unexpected argument 'stray'"),
        (f"{TRAIN} --config.variant.name=lorra", "nearest: 'lora'"),
        (f"{TRAIN} --process=1", "--process needs --coordinator, too"),
        (f"{TRAIN} --rank=4", "error: no flag --rank; it is --config.variant.rank"),
        (f"{TRAIN} --distributed", "--distributed: JAX cannot tell how these processes meet"),
        (
            f"{STUDY} --rows=dora",
            "error: --rows, --columns: unknown reference 'lora'",
        ),
        (f"{STUDY} --argument=source=tsv,folder=nowhere", "sst2: there is no folder nowhere"),
        (f"{STUDY.replace('lora', 'lorra')}", "unknown study; nearest: 'against_lora'"),
        (f"{STUDY} --argument=source=tsv,row=dora", "row is given by --rows"),
        (f"{STUDY} --argument=task=cola", "task is given by --columns"),
        (f"{STUDY} --argument=seed=3", "seed is given in the file's STUDY"),
        (f"{STUDY} --argument=size=smoke,epochs=0", "epochs is 0, but a study chooses rates by"),
        (SWEEP, "error: nothing to sweep: give --sweep=KEY=VALUES"),
        (f"{SWEEP} --sweep=config.seed=0:2 --processes=0", "error: flag --processes=0"),
        (
            f"{SWEEP} --sweep=config.seed=0:2 --dry_run --sweep_seed=3",
            "error: --sweep_seed would be ignored: it goes with --trials and --search",
        ),
        (f"{SEARCH} --budget=9", "error: --budget would be ignored: it goes with --search"),
        (
            f"{SEARCH} --halving_factor=2",
            "error: --halving_factor would be ignored: it goes with --search=halving",
        ),
        (
            f"{SEARCH} --search=random",
            "error: --search=random needs --trials=N, --budget=STEPS, or both",
        ),
        (
            f"{SEARCH} --search=random --trials=3 --shard=0/2",
            "error: --shard does not go with --search",
        ),
        (
            f"{SEARCH} --search=halving --trials=3 --processes=2",
            "error: --processes does not go with --search=halving",
        ),
        (
            f"{SEARCH} --search=halving --trials=3 --retry",
            "error: --retry does not go with --search=halving",
        ),
        (
            f"{SEARCH} --search=tpe --trials=3 --launcher=print",
            "error: --launcher does not go with --search",
        ),
        ("sweeps.worker --workdir=OUT", "error: --trial is missing: "),
        ("sweeps.worker --workdir=OUT --trial=../x", "has no trial '../x'; nearest: none"),
        ("sweeps.worker --workdir=OUT --trial=x --cores=a", "--cores=a: expected whole numbers"),
        ("methods --documents=README.md --shape=8x8", f"{DEFAULTS} --shape out"),
        ("methods --documents=README.md --model=minilm", f"{DEFAULTS} --model out"),
        *(
            (line, f"error: {line.split()[-1].partition('=')[0]} would be ignored: {why}")
            for line, why in (
                ("plan --published --methods=lora", "--published shows published model sizes"),
                ("plan --methods=lora --tokens=8", "it goes with --table"),
                ("benchmarks --suite=start --size=smoke", "--suite=start trains the quickstart"),
                ("benchmarks --suite=sweep --cases=minilm", "--suite=sweep has no cases"),
                ("benchmarks --documents=README.md --suite=memory", DRAWN),
                ("combine --runs=a,b --out=runs/no --seed=1", "it goes with --by=dare"),
                ("distance --runs=a --directions=4", "it compares two runs"),
                ("table --documents=README.md --table=glue", WHOLE),
                ("table --documents=README.md --size=smoke", WHOLE),
                ("power --sd=0.6 --reference=dora", "it goes with --results"),
                ("power --sd=0.6 --size=smoke", "it goes with --results"),
                ("report --documents=README.md --results=runs", "--documents writes what committ"),
                ("methods --documents=README.md --format=csv", "the tables in documents are in M"),
            )
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, line, said):
    """It says what is wrong, and nothing has been written."""
    command, *arguments = line.replace("OUT", str(tmp_path / "out")).split()
    done = commands.run(
        command if command == "benchmarks" else f"experiments.{command}", *arguments
    )
    (error,) = [each for each in done.stderr.splitlines() if not each.startswith("devices: ")]
    assert (done.returncode, done.stdout) == (1, "")
    assert error.startswith("error: ") and said in error
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_system_names_the_file_and_no_number(tmp_path):
    command = tmp_path / "command.py"
    lines = {
        "open('absent/file')": "absent/file: No such file or directory",
        "os.rename('absent', 'new')": "absent -> new: No such file or directory",
        "raised(OSError(28, 'No space left on device'))": "No space left on device",
        "raised(full_disk.FullDiskError('out'))": str(full_disk.FullDiskError("out")),
        "raised(OSError('a text'))": "a text",
    }
    for call, said in lines.items():
        command.write_text(
            "import os\nfrom experiments import cli\nfrom lora_jax.files import full_disk\n"
            f"def raised(error): raise error\ncli.main(lambda: {call})\n"
        )
        done = commands.run(command)
        assert (done.returncode, done.stderr) == (1, f"error: {said}\n")


def test_a_new_interpreter_says_the_same():
    """As `commands` does not start one."""
    line = [sys.executable, "-m", "experiments.train", "--config=configs/quikstart.py"]
    plain = {name: os.environ[name] for name in os.environ.keys() - command_names.MALLOC}
    done = subprocess.run(line, cwd=ROOT, env=plain, capture_output=True, text=True)
    forked = commands.run(*line[2:])
    assert (done.returncode, done.stderr) == (forked.returncode, forked.stderr)


@pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="no glibc")
def test_settings_of_malloc_are_those_of_the_user_if_there_is_one():
    assert command_names.missing({"PATH": "x"}) == command_names.MALLOC
    for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD"):
        assert command_names.missing({name: ""}) == {}


@pytest.mark.slow
def test_a_program_is_compiled_once_on_a_machine(tmp_path):
    """Every program of a run is found again by the next process, which gets the same bits."""
    # JAX has set the last of them in this process.
    drop = {"JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"}
    drop |= {"TF_CPP_MIN_LOG_LEVEL"}
    environment = {name: os.environ[name] for name in os.environ.keys() - drop}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    line = [sys.executable, "-m", "experiments.train", *small_model.flags(tmp_path)]
    kept, adapters = [], []
    for name in ("first", "second"):
        given = [*line, f"--workdir={tmp_path / name}"]
        ended = subprocess.run(given, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert "cpu_aot_loader" not in ended.stderr
        kept.append(
            sorted(path.name for path in tmp_path.glob("cache/lora_jax/programs/*/*-cache"))
        )
        adapters.append((tmp_path / name / "adapter.safetensors").read_bytes())
    assert len(kept[0]) > 10
    assert kept[0] == kept[1]
    assert adapters[0] == adapters[1]


def read(path, text, *more):
    """A config's file with this text, read as commands read it."""
    path.write_text(text)
    return read_config([f"--config={path}", *more])


HEAD = "from ml_collections import ConfigDict\nfrom configs import common\n\n"
GOOD = f"{HEAD}def get_config(arg=None):\n    return ConfigDict({{'seed': 0}})\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 / 0\n", "{}, line 7: ZeroDivisionError: division by zero"),
        ("x = = 1\n", r"'{}' is not a config, not even Python: invalid syntax .*line 7\)"),
        ("x = {}['a']\n", "{}, line 7: KeyError: 'a'"),
        (
            "from configs import nothing\n",
            "{}, line 7: ImportError: cannot import name 'nothing' .*",
        ),
        (
            "open('/nowhere/x')\n",
            "'{}' gives no config: .* No such file or directory: '/nowhere/x'",
        ),
        ("def get_config():\n    return int('x')\n", "{}, line 8: ValueError: invalid literal .*"),
        ("def get_config():\n    return [].x\n", "{}, line 8: AttributeError: 'list' object .*"),
        ("def get_config():\n    return {} + 1\n", "{}, line 8: TypeError: unsupported .*"),
        ("def get_config():\n    raise SystemExit\n", "{}, line 8: SystemExit"),
        ("def get_config():\n    raise KeyError('a\\nb')\n", "{}, line 8: KeyError: .*"),
        ("def get_config():\n    return get_config()\n", "{}, line 8: RecursionError: .*"),
        ("def get_config():\n    return open('/nowhere')\n", "{}, line 8: FileNotFoundError: .*"),
        ("def get_config():\n    raise ValueError('no\\n1')\n", "no 1"),
        (
            "def get_config():\n    try:\n        {}['a']\n    except KeyError:\n"
            "        raise ValueError('what to do')\n",
            "what to do",
        ),
        (
            "def get_config():\n    common.parse_arg('b=1', a='2')\n",
            "config argument 'b=1': expected one of a=...; settings are flags, as in --.*",
        ),
        (
            "def get_config():\n    common.parse_arg('a=x', a=1)\n",
            "config argument 'a=x': a must be a whole number, got 'x'",
        ),
        (
            "def get_config():\n    common.parse_arg('a=1_0', a=1)\n",
            "config argument 'a=1_0': a must be a whole number, got '1_0'",
        ),
        (
            "def get_config():\n    common.parse_arg('a=1,a=2', a=1)\n",
            "config argument 'a=2': a is given twice",
        ),
        ("def get_config():\n    return ConfigDict(3)\n", "{}, line 8: .*"),
        (
            "def get_config():\n    pass\n",
            r"'{}': get_config\(\) returns a NoneType, expected a Con.*",
        ),
        ("def get_config():\n    return {}\n", r"'{}': get_config\(\) returns a dict, expected .*"),
        ("def get_config(a, b):\n    pass\n", r"get_config\(\) missing 2 required .*"),
        ("\0", "'{}' is not a config, not even Python: .*null bytes.*"),
        ("x = " + "(" * 500 + ")" * 500, "'{}' is not a config, not even Python: .*"),
        ("x = " + "-" * 9999 + "1", "'{}' is not a config, not even Python: .*"),
    ],
)
def test_what_a_configs_own_code_raises_is_one_line(tmp_path, text, said):
    path = tmp_path / "own.py"
    with pytest.raises(ValueError, match=r"\S") as error:
        read(path, GOOD + "\n" + text)
    assert re.fullmatch(said.replace("{}", re.escape(str(path))), str(error.value))
    read(path, GOOD)


def test_flags_of_a_config_keep_their_own_lines(tmp_path):
    path = tmp_path / "own.py"
    for flag, said in [
        ("--config.sed=1", "^config.sed: no such setting; nearest: config.seed$"),
        ("--config.seed=x", "flag --config.seed=x: expected a whole number, such as 8"),
        ("--config.seed.x=1", "^config.seed.x: no such setting; config.seed is a single one$"),
    ]:
        with pytest.raises(ValueError, match=said):
            read(path, GOOD, flag)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("data.batch_size=8",), "data.batch_size: no such setting; it is config.train.batch_size"),
        (("lr=1e-3",), "lr: no such setting; it is config.optimizer.learning_rate"),
        (("model.pol=cls",), "model.pol: no such setting; nearest: config.model.pool"),
        (("model.quantize=nf4",), "model.quantize: .*; nearest: .*config.quantize.storage"),
        (
            ("optimizer.name=adamw",),
            "optimizer.name: .*; nearest: config.data.name, config.model.name, config.variant.name",
        ),
        (("seed=1", "zzzz=1", "yyyy=1"), "zzzz: no such setting; --help lists all"),
        (("model.unroll=1", "data.unroll=1"), "data.unroll: .*; it is config.model.unroll"),
    ],
)
def test_a_setting_is_looked_for_in_all_sections(given, said):
    with pytest.raises(ValueError, match=r"\S") as error:
        read_config([f"--config={SMOKE}", *(f"--config.{flag}" for flag in given)])
    assert re.fullmatch(f"config.{said}", str(error.value))


NUMBERS = "{'seed': 0, 'rate': 0.5, 'name': 'x', 'pair': (1, 'a'), 'on': True}"


@pytest.mark.parametrize(
    "flag",
    [
        *(f"seed={text}" for text in ("1_0", "٣", "0x10", "1" * 400)),
        *(f"rate={text}" for text in ("1_0", "inf", "-inf", "nan", "1e400", "1e-400", "٣.5")),
        *(f"pair={text}" for text in ("(1_0,'a')", "(1,2e999)", "(0x1,)")),
    ],
)
def test_a_number_of_a_config_is_plainly_one(tmp_path, flag):
    with pytest.raises(
        ValueError, match=r"^flag --config\.\w+=.* is not a plainly written, finite number"
    ):
        read(
            tmp_path / "own.py",
            HEAD + f"def get_config():\n    return ConfigDict({NUMBERS})\n",
            f"--config.{flag}",
        )


def test_plain_numbers_and_texts_of_a_config_are_taken(tmp_path):
    given = ["seed=-10", "rate=+.5e-3", "name=1_0", "pair=(-7,'1_0')", "on=false"]
    text = HEAD + f"def get_config():\n    return ConfigDict({NUMBERS})\n"
    config = read(tmp_path / "own.py", text, *(f"--config.{flag}" for flag in given))
    wanted = {"seed": -10, "rate": 5e-4, "name": "1_0", "pair": (-7, "1_0"), "on": False}
    assert config.to_dict() == wanted
    with pytest.raises(ValueError, match=r"--config\.seed=1_0: '1_0'"):
        read(tmp_path / "own.py", text, "-config.seed", "1_0")


def test_what_a_configs_sweep_raises_is_one_line(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(GOOD + "\ndef sweep():\n    yield {'config.seed': 1}\n    yield 1 / 0\n")
    with pytest.raises(ValueError, match=r"own\.py, line 9: ZeroDivisionError: division by zero$"):
        trials.own_sweep(str(path))


@pytest.mark.parametrize("text", ["1_0", "٣", "1.0", "", "9" * 5000, "1,x"])
def test_whole_numbers_are_plain(text):
    with pytest.raises(ValueError, match=r"--mesh=.*: expected whole numbers"):
        cli.integers("mesh", text.split(","))
    assert cli.integers("mesh", ["-1", "4"]) == [-1, 4]
    with pytest.raises(ValueError, match=r"^--mesh=0x2: expected whole numbers, such as 1,-1,1$"):
        cli.integers("mesh", ["0x2"], "1,-1,1")
    with pytest.raises(ValueError, match="--shard="):
        jobs.parse_shard(f"{text}/12")


@pytest.fixture
def some_flags(monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_string("run", None, "A folder.", flag_values=values)
    flags.DEFINE_list("runs", None, "Folders.", flag_values=values)
    flags.DEFINE_list("methods", ["full", "lora"], "Methods.", flag_values=values)
    flags.DEFINE_list("tasks", [], "Tasks.", flag_values=values)
    flags.DEFINE_string("kind", "best", "A kind.", flag_values=values)
    flags.DEFINE_string("shard", "", "A shard.", flag_values=values)
    flags.DEFINE_enum("launcher", "local", LAUNCHERS, "A launcher.", flag_values=values)
    flags.DEFINE_integer("seeds", 2, "Seeds.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("rows", 2, "Rows.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("share", 1.0, "A share.", 0.0, 1.0, flag_values=values)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    return values


ONE = r"expected local\|slurm\|ray\|print"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--run=", "--run is empty: a folder"),
        ("--runs=", "--runs is empty: folders"),
        ("--runs=a,,", "--runs=a,, has an empty entry"),
        ("--methods=", "--methods is empty: leave it out for full,lora"),
        ("--tasks=", "--tasks is empty: tasks"),
        ("--kind=", "--kind is empty: a kind"),
        ("--knd=x", "no flag --knd; nearest: --kind"),
        ("--zzzz=x", "no flag --zzzz; --help lists all"),
        ("--launcher=slrm", f"flag --launcher=slrm: {ONE}; nearest: 'slurm'"),
        ("--launcher=zzz", f"flag --launcher=zzz: {ONE}"),
        ("--seeds=1", "flag --seeds=1: expected a whole number of at least 2"),
        ("--rows=-1", "flag --rows=-1: expected a positive integer"),
        ("--share=2", r"flag --share=2: expected a number in the range \[0.0, 1.0\]"),
        ("--run=~/x", "--run=~/x: the shell leaves ~ as it is here: write .HOME"),
        ("--run=folder=~me/x", "--run=folder=~me/x: the shell leaves ~ as it is here: write .HOME"),
    ],
)
def test_a_flag_that_is_wrong(some_flags, argument, said):
    with pytest.raises(SystemExit, match=f"^error: {said}$"):
        cli.parse(["command", argument])


def test_texts_that_are_no_mistake(some_flags):
    cli.parse(["command", "--shard=", "--run=a~/x"])
    assert (some_flags.shard, some_flags.run) == ("", "a~/x")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    said = f"^--out={tmp_path}/file/x/y: {tmp_path}/file is not a folder$"
    with pytest.raises(ValueError, match=said):
        cli.out_folder(f"{tmp_path}/file/x/y")
    assert cli.out_folder(f"{tmp_path}/new/x") == tmp_path / "new/x"
    with pytest.raises(ValueError, match=r"^--out=a:b: --config cannot name a file below a folder"):
        cli.run_folder("a:b")  # what is after a colon is an argument of a config


def test_the_root_is_a_folder(monkeypatch):
    monkeypatch.setattr(cli.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"^--out=/: / cannot be written to$"):
        cli.out_folder("/")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--config", "configs/quick.py"), "no config file 'configs/quick.py'; nearest: .*quickst"),
        (
            ("-config=quickstart.py:size=smoke",),
            "no config file 'quickstart.py'; nearest: .*/quick",
        ),
        (("--config=configs/common.pyy",), "no config file .*; nearest: 'configs/.*"),
        (("--config=",), "no config file ''"),
        (("--workdir=x", "--config"), "no config file ''"),
        (
            ("--config=configs/glue.py,task=cola",),
            "--config=configs/glue.py,task=cola: arguments follow a colon: configs/glue.py:task=co",
        ),
        (
            ("--config=README.md",),
            "'README.md' is not a config, not even Python: .*README.md, line",
        ),
        (
            ("--config=configs/common.py",),
            "'configs/common.py' is not a config: it has no get_config; nearest: 'configs/.*",
        ),
    ],
)
def test_what_is_no_config_file(monkeypatch, arguments, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        cli.parse(["command", *arguments])
    assert re.fullmatch(f"error: {said}.*", str(caught.value.code))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["--config=nope.py"], "no config file 'nope.py'; nearest: .*"),
        (["--config=configs/glue.py:tusk=rte"], "config argument 'tusk=rte': expected .*"),
        (
            ["--config=configs/glue.py", "--config.variant=dora"],
            "flag --config.variant=dora: it is a section, not a setting; "
            "nearest: --config.variant.name",
        ),
        (
            ["--config=configs/glue.py", "--config=configs/glue.py", "--config.seed=1"],
            "two --config flags are given: leave one out",
        ),
    ],
)
def test_a_mistake_in_a_file_of_flags_is_the_one_of_the_command_line(tmp_path, lines, said):
    file = tmp_path / "flags"
    file.write_text("\n".join(lines))
    for given in (lines, [f"--flagfile={file}"]):
        with pytest.raises(ValueError, match=f"^{said}$"):
            read_config(given)


def test_a_config_of_this_project_is_found_in_any_folder(tmp_path, monkeypatch):
    """Unless there is a file of that name."""
    monkeypatch.chdir(tmp_path)
    assert read_config(["--config=configs/glue.py:task=rte"]).data.name == "glue/rte"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "glue.py").write_text(
        "from ml_collections import ConfigDict\n\n"
        "def get_config(arg=None):\n    return ConfigDict({'seed': 0})\n"
    )
    assert read_config(["--config", "configs/glue.py"]).to_dict() == {"seed": 0}
    with pytest.raises(ValueError, match=r"no config file 'configs/glu.py'; nearest: .*glue.py'"):
        read_config(["--config=configs/glu.py"])


def test_a_file_that_is_no_config_is_not_executed(tmp_path):
    (tmp_path / "other.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    with pytest.raises(SystemExit, match="it has no get_config"):
        cli.parse(["command", f"--config={tmp_path / 'other.py'}"])
    assert not (tmp_path / "trace").exists()
