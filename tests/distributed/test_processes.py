"""Processes of one run: what is asked of the command line, and who says what alone."""

import socket

import pytest

from experiments.distributed import processes

ALL = {"coordinator": "node:8476", "processes": 2, "process": 1}


@pytest.mark.parametrize("given", [{}, ALL, ALL | {"coordinator": "[::1]:1"}, {"found": True}])
def test_combinations_that_work(given):
    processes.check_arguments(
        **{"coordinator": None, "processes": None, "process": None, "found": False} | given
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"process": 1}, "--process needs --coordinator, too"),
        ({"processes": 2}, "--processes needs --coordinator, too"),
        ({"coordinator": "node:1", "process": 0}, "--coordinator needs --processes, too"),
        (ALL | {"process": None}, "--coordinator needs --process, too"),
        (ALL | {"process": 2}, "--process=2: expected 0 to 1 of --processes=2"),
        (ALL | {"process": -1}, "--process=-1: expected 0 to 1 of --processes=2"),
        (ALL | {"processes": 0}, "--processes must be positive, got 0"),
        (ALL | {"coordinator": "node"}, "--coordinator=node: expected host:port, as 10.0.0.1:8476"),
        (ALL | {"coordinator": ":8476"}, "--coordinator=:8476: expected host:port"),
        (ALL | {"coordinator": "node:99999"}, "--coordinator=node:99999: expected host:port"),
        (ALL | {"found": True}, "--distributed finds all by itself: leave out --coordinator"),
    ],
)
def test_combinations_that_do_not(given, said):
    with pytest.raises(ValueError) as caught:
        processes.initialize(**given)
    assert str(caught.value).startswith(said)


def test_alone_a_process_writes_and_waits_for_nobody():
    tree = {"w": object()}
    assert processes.writes() and processes.whole(tree) is tree
    processes.together("here")
    assert processes.first(lambda: tree) is tree


def test_a_port_in_use_is_a_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        coordinator = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"^--coordinator={coordinator}: Address already in "):
            processes.initialize(coordinator, 2, 0)
