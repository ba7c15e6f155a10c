"""Zip archives from untrusted sources: sizes are checked before anything is unpacked.

A few kilobytes of zip can hold gigabytes of zeros, and a header can declare any shape.
"""

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from lora_jax.messages import first_line

FREE = 64 << 20
"""Bytes that any archive may unpack to, however small it is."""
RATIO = 20
"""A larger archive may unpack to this many times its own size: texts reach 4, numbers less."""
TEXT_RATIO = 200
"""The same of a .gz file, as records of runs repeat most of their settings."""


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive after checking the sizes that it declares.

    Raises:
      ValueError: not a zip archive; an entry that is encrypted, occurs twice or declares two sizes;
        entries that together are larger than the file, as overlapping ones are; or an unpacked size
        above both `FREE` and `RATIO` times the file's size.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory fails in any way
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"not a zip archive: {first_line(error)}") from error
    try:
        _check(archive, path.stat().st_size)
    except ValueError:
        archive.close()
        raise
    return archive


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The numeric arrays of a .npz file, by name.

    Raises:
      ValueError: anything else, or an array whose declared shape does not match its bytes. The
        message does not name the file.
    """
    with open_zip(path) as archive:
        try:
            entries = archive.infolist()
            return {each.filename.removesuffix(".npy"): _array(archive, each) for each in entries}
        except ValueError:
            raise
        except Exception as error:  # from zlib, a checksum or NumPy
            raise ValueError(first_line(error)) from error


def read_gzip(path: Path) -> bytes:
    """What a .gz file holds.

    Raises:
      ValueError: it is damaged or cut, or would unpack to more than both `FREE` and `TEXT_RATIO`
        times its size.
    """
    most = max(FREE, TEXT_RATIO * path.stat().st_size)
    try:
        if not path.stat().st_size:  # which gzip takes for a file that holds nothing
            raise EOFError("the file is empty")
        with gzip.open(path) as file:
            content = file.read(most + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}): put the file back") from error
    if len(content) > most:
        raise ValueError(f"{path} is refused, as it would unpack to more than {most:,} bytes")
    return content


def _check(archive: zipfile.ZipFile, size: int) -> None:
    entries = archive.infolist()
    names = [each.filename for each in entries]
    if len(set(names)) < len(names):
        raise ValueError("the archive has the same entry twice")
    for each in entries:
        if each.flag_bits & 1:
            raise ValueError(f"entry {each.filename} is encrypted")
        if each.compress_type == zipfile.ZIP_STORED and each.file_size != each.compress_size:
            raise ValueError(f"entry {each.filename} declares two sizes")
    packed = sum(each.compress_size for each in entries)
    whole = sum(each.file_size for each in entries)
    if packed > size:
        raise ValueError(f"its entries are {packed:,} bytes, the file has {size:,}")
    if whole > max(FREE, RATIO * size):
        raise ValueError(f"it is refused, as its {size:,} bytes would unpack to {whole:,}")


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as stream:
        try:
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[np.lib.format.read_magic(stream)]
            shape, _, dtype = read_header(stream)
        except Exception as error:  # a header is a Python literal: it can fail in any way
            raise ValueError(f"the header of {entry.filename}: {first_line(error)}") from error
        there = entry.file_size - stream.tell()
        fits = min(shape, default=0) >= 0 and math.prod(shape) * dtype.itemsize == there
        if dtype.kind not in "biuf" or not fits:
            raise ValueError(f"{entry.filename} declares {dtype} {shape}, but has {there:,} bytes")
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
