"""A flag that a command line would not use is an error, in one line, before anything is read."""

import commands
import pytest


@pytest.mark.parametrize(
    ("command", "given", "flag", "why"),
    [
        ("plan", ["--published"], "--methods=lora", "--published shows published model sizes"),
        ("plan", ["--methods=lora"], "--tokens=8", "it goes with --table"),
        ("benchmarks", [], "--trials=8", "it goes with --suite=sweep"),
        ("benchmarks", ["--suite=start"], "--sizes=8x16", "it goes with --suite=sweep"),
        (
            "benchmarks",
            ["--suite=start"],
            "--size=smoke",
            "--suite=start takes what --config trains",
        ),
        ("benchmarks", ["--suite=sweep"], "--cases=minilm", "--suite=sweep has no cases"),
        ("benchmarks", ["--suite=scale"], "--steps=20", "it goes with --suite=sweep"),
        (
            "benchmarks",
            [],
            "--config=configs/glue.py",
            "it goes with --suite=sweep and --suite=start",
        ),
        ("combine", ["--runs=a,b", "--out=runs/no"], "--seed=1", "it goes with --by=dare"),
        ("distance", ["--runs=a"], "--directions=4", "it compares two runs"),
        ("table", ["--documents=README.md"], "--table=glue", "--documents writes whole tables"),
        ("table", ["--documents=README.md"], "--size=smoke", "--documents writes whole tables"),
        ("power", ["--sd=0.6"], "--reference=dora", "it goes with --results"),
        ("power", ["--sd=0.6"], "--size=smoke", "it goes with --results"),
        ("benchmarks", ["--documents=README.md"], "--suite=memory", "--documents times nothing"),
        (
            "benchmarks",
            ["--documents=README.md"],
            "--config=configs/glue.py",
            "--documents times no",
        ),
        ("report", ["--documents=README.md"], "--results=runs", "--documents writes what committ"),
        ("methods", ["--documents=README.md"], "--format=csv", "the tables in documents are in Ma"),
    ],
)
def test_a_flag_that_would_be_ignored(command, given, flag, why):
    module = command if command == "benchmarks" else f"experiments.{command}"
    ended = commands.run(module, *given, flag)
    name = flag.partition("=")[0]
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"error: {name} would be ignored: {why}")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "flag", "said"),
    [
        ("methods", "--shape=8x8", "the tables in documents use the default; leave --shape out"),
        ("methods", "--model=minilm", "the tables in documents use the default; leave --model out"),
    ],
)
def test_documents_have_the_tables_of_the_defaults(command, flag, said):
    ended = commands.run(f"experiments.{command}", "--documents=README.md", flag)
    assert (ended.returncode, ended.stderr) == (1, f"error: --documents: {said}\n")


def test_a_seed_of_draws_where_nothing_is_drawn(tmp_path):
    line = ["--config=configs/quickstart.py:size=smoke", "--sweep=config.seed=0:2", "--dry_run"]
    workdir = tmp_path / "sweep"
    ended = commands.run("experiments.sweep", *line, "--sweep_seed=3", f"--workdir={workdir}")
    assert ended.returncode == 1
    said = "--sweep_seed would be ignored: it goes with --trials and --search"
    assert ended.stderr == f"error: {said}\n"
    assert not workdir.exists()
