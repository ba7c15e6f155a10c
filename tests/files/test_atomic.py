"""A file that several writers replace at once is always one that was written whole."""

import concurrent.futures

from lora_jax.files.atomic import write_atomically


def test_writers_of_one_process_do_not_disturb_each_other(tmp_path):
    """Nor do those of several machines, whose processes can have one number."""
    path, contents = tmp_path / "new" / "file", [bytes([n]) * 100_000 for n in range(4)]

    def replace(content: bytes) -> None:
        for _ in range(10):
            write_atomically(path, content)
            assert path.read_bytes() in contents

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(replace, contents))
    assert [each.name for each in path.parent.iterdir()] == ["file"]
