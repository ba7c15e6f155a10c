"""Archives like those of torch.save, written by hand: what torch writes, and what it never does."""

import io
import pickle
import zipfile
from collections import OrderedDict


class Named:
    """A stand-in that pickles as a function or class of another module, called with arguments."""

    def __init__(self, module, name, *args):
        self.module, self.name, self.args = module, name, args


class Storage:
    """A stand-in for a storage, pickled by its persistent id."""

    def __init__(self, numel, kind="FloatStorage", key="0"):
        self.pid = ("storage", Named("torch", kind), key, "cpu", numel)


class Pickler(pickle._Pickler):
    """Writes what torch would write, by hand: opcodes for names that do not exist here."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
            if obj.args:
                super().save(obj.args)
                self.write(b"R")
        elif isinstance(obj, Storage):
            self.save(obj.pid)
            self.write(b"Q")
        else:
            super().save(obj, save_persistent_id)


def tensor(storage, offset=0, shape=(2,), strides=(1,)):
    arguments = (storage, offset, shape, strides, False, OrderedDict())
    return Named("torch._utils", "_rebuild_tensor_v2", *arguments)


def archive(path, content, data=bytes(8), compression=zipfile.ZIP_STORED, byteorder=b"little"):
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("any/data.pkl", stream.getvalue())
        file.writestr("any/byteorder", byteorder)
        for i, each in enumerate([data] if isinstance(data, bytes) else data):
            file.writestr(f"any/data/{i}", each)
    return path


def save_bin(path, arrays):
    """Float32 arrays by name, as torch.save writes tensors."""
    content = {}
    for i, (name, array) in enumerate(arrays.items()):
        strides = [step // array.itemsize for step in array.strides]
        storage = Storage(array.size, key=str(i))
        content[name] = tensor(storage, 0, array.shape, tuple(strides))
    return archive(path, content, [array.tobytes() for array in arrays.values()])
