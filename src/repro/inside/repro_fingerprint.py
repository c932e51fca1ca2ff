"""Arrays -> digests, of weights and batches: what `repro_run` needs for its fingerprints and for `save_weights`.

Standard library alone, 3.8 or later; NumPy where there are arrays of its kind. What is plain Python needs none, and has
the same digest with and without it.
"""

import array as arrays
import contextlib
import hashlib
import re
import sys

WHOLE = 16 << 20  # bytes: of more than these, a sample of about as many is hashed
PIECE = 4096  # bytes of a sample that lie together
COUNT = 1 << 16  # numbers of plain Python: of more, a sample of about as many is hashed
LOOK = 64  # items of a list that tell whether there are tensors in it


def weights(model, *, unique=False):
    """name -> tensor, of a Keras model, a PyTorch module, or a dict of arrays.

    With `unique`, weights of one name get a number; else they are a ValueError.
    """
    if isinstance(model, dict):
        return model
    if hasattr(model, "state_dict"):
        return {name: tensor for name, tensor in model.state_dict().items() if hasattr(tensor, "detach")}
    found = {}
    for weight in model.weights:
        name = getattr(weight, "path", None) or weight.name
        if name in found:
            if not unique:
                raise ValueError(f"save_weights(): two weights are called {name!r}; name the layers")
            name = f"{name} ({len(found)})"
        found[name] = weight
    return found


def array(value):
    """A tensor of any kind as NumPy's, on the CPU, little-endian."""
    import numpy

    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            value = value.numpy()
        except TypeError:  # a type that NumPy does not have, as bfloat16
            value = value.float().numpy()
    elif hasattr(value, "numpy"):
        value = value.numpy()
    values = numpy.asarray(value, order="C")
    if values.dtype.hasobject:
        raise TypeError(f"{type(value).__name__} is no array of numbers")
    if values.dtype.byteorder == ">" or sys.byteorder == "big":
        values = values.astype(values.dtype.newbyteorder("<"))
    return values


def _size(value):
    """Bytes of a tensor, without fetching it from where it is."""
    if hasattr(value, "element_size"):
        return value.numel() * value.element_size()
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    count = 1
    for length in getattr(value, "shape", ()):
        count *= length
    bits = re.search(r"\d+", str(getattr(value, "dtype", "")))
    return count * (int(bits.group()) // 8 if bits else 1)


def leaves(value, path=""):
    """path -> tensor, of whatever a batch is made of: arrays, and tuples, lists and dicts of them."""
    if isinstance(value, dict):
        members = [(str(name), each) for name, each in value.items()]
    elif isinstance(value, (tuple, list)) and not _is_plain(value):
        members = [(str(number), each) for number, each in enumerate(value)]
    else:
        return {path: value}
    found = {}
    for name, each in members:
        if each is not None:
            found.update(leaves(each, f"{path}/{name}" if path else name))
    return found


def _is_plain(value):
    """Whether it is of Python's own numbers, texts and bytes, and lists of these, as far as their first items tell."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value[:LOOK]))
    plain = (bool, int, float, complex, str, bytes, bytearray, range, arrays.array)
    return value is None or (isinstance(value, plain) and not hasattr(value, "shape"))


def _plain(value, share):
    """Bytes that stand for a plain value, the same for equal ones alone; of at most about `share` numbers in it."""
    if value is None or isinstance(value, (bool, int)):
        yield b"%s;" % str(value).encode()
    elif isinstance(value, float) and not hasattr(value, "shape"):
        yield b"%s;" % value.hex().encode()
    elif isinstance(value, complex):
        yield b"%s,%s;" % (value.real.hex().encode(), value.imag.hex().encode())
    elif isinstance(value, (str, bytes, bytearray)):
        content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        yield b"%s %d:" % (b"text" if isinstance(value, str) else b"bytes", len(content))
        whole = len(content) <= WHOLE
        for begin in [0] if whole else _pieces(len(content), WHOLE):
            yield bytes(content if whole else content[begin : begin + PIECE])
    elif isinstance(value, (list, tuple, range, arrays.array)):
        count = len(value)
        yield b"[%d:" % count
        few = max(2, share)
        chosen = range(count) if count <= few else sorted({(count - 1) * n // (few - 1) for n in range(few)})
        for number in chosen:
            yield from _plain(value[number], share // max(1, len(chosen)))
    else:
        raise TypeError(f"{type(value).__name__} is no number, and no array either")


def digest(tensors, *, whole=False):
    """The sha256 over names, types, shapes and values, in the order of the names; of plain Python, names and values.

    Of tensors that have more than 16 MiB together, pieces of 4 KiB at even distances stand for the values, unless
    `whole` says that all of them are to be read. One at a time is fetched.
    """
    total = sum(map(_size, tensors.values()))
    whole = whole or total <= WHOLE
    hasher = hashlib.sha256(b"repro weights 1\n" if whole else b"repro weights 1, a sample of 16 MiB\n")
    for name, tensor in sorted(tensors.items()):
        if _is_plain(tensor):
            hasher.update(b"plain %d " % len(name.encode()) + name.encode())
            for part in _plain(tensor, COUNT):
                hasher.update(part)
            continue
        values = array(tensor)
        header = (name, values.dtype.name, ",".join(str(size) for size in values.shape))
        for part in (text.encode() for text in header):
            hasher.update(len(part).to_bytes(8, "big") + part)  # length first: unambiguous
        content = values.reshape(-1).view("u1")
        hasher.update(content.nbytes.to_bytes(8, "big"))
        if whole:
            hasher.update(content)
        else:
            for begin in _pieces(content.nbytes, content.nbytes * WHOLE // total):
                hasher.update(content[begin : begin + PIECE])
    return hasher.hexdigest()


def _pieces(size, share):
    """Where the pieces of a sample begin: the first at the beginning, the last at the end."""
    count = max(2, share // PIECE)
    last = max(0, size - PIECE)
    return sorted({last * number // (count - 1) for number in range(count)})


class Told:
    """What went wrong, said once of each kind: a fingerprint is worth no run."""

    def __init__(self):
        self.kinds = set()

    def __call__(self, what, error):
        if type(error) not in self.kinds:
            self.kinds.add(type(error))
            with contextlib.suppress(OSError, ValueError):
                print(f"repro_run: {what}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


class Batches:
    """An iterable of batches, whose first one in each pass is shown to somebody; else it is what it was."""

    def __init__(self, iterable, show):
        self._iterable, self._show = iterable, show
        self._passes = 0

    def __iter__(self):
        batches = iter(self._iterable)
        begun = self._passes and batches is self._iterable  # with `next`, and it goes on
        if not begun:
            self._passes += 1
            number = self._passes
            for batch in batches:
                self._show(number, batch)
                yield batch
                break
        yield from batches

    def __next__(self):
        batch = next(self._iterable)
        if not self._passes:
            self._passes = 1
            self._show(1, batch)
        return batch

    def __len__(self):
        return len(self._iterable)

    def __bool__(self):
        return bool(self._iterable)

    def __getitem__(self, index):
        return self._iterable[index]

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._iterable, name)
