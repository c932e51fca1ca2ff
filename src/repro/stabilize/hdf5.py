"""HDF5: what is under which path, of which type, with which values and attributes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from repro.stabilize.form import LIMIT, Allowance, Stabilizer, UnreadableError, digest, line, lines

EXACT = {  # where sign, exponent and mantissa of a float are, and how long: half, single, double, brain
    (15, 10, 5, 0, 10),
    (31, 23, 8, 0, 23),
    (63, 52, 11, 0, 52),
    (15, 7, 8, 0, 7),
}
COMMENT = 1 << 13  # the kind of message that holds one, among those in the header of an object


def tree(content: bytes) -> bytes:
    """A line for each path, sorted; values bit for bit, in the types that the file has them in.

    Left out are times, free space, chunks, compression and where things lie in the file. What lies in other files is
    not followed: a link is its text, and a dataset that is elsewhere makes the file unreadable.
    """
    import h5py

    try:
        file = h5py.h5f.open_file_image(content)
    except OSError as error:
        raise UnreadableError("no HDF5") from error
    try:
        return _Tree(h5py, file, content).lines()
    finally:
        file.close()


class _Tree:
    """One open file. Its lowest interface is spoken, where names are bytes and nothing is converted on the way."""

    def __init__(self, h5py: Any, file: Any, content: bytes) -> None:
        self.h5, self.allowance = h5py, Allowance(LIMIT)
        self.root = h5py.h5g.open(file, b"/")
        self.paths: dict[int, str] = {}  # of each object the first, by its address
        self.found: list[tuple[str, str, Any]] = []  # path, link or kind, object or text
        self.front = content[: file.get_create_plist().get_userblock()]

    def lines(self) -> bytes:
        """All of it."""
        self._visit(self.root, "/")
        head = {"front": digest(self.front)} if self.front else {}
        return line(head) + lines(self._described(*each) for each in sorted(self.found, key=lambda each: each[0]))

    def _visit(self, group: Any, path: str) -> None:
        self.paths[self.h5.h5o.get_info(group).addr] = path
        self.found.append((path, "group", group))
        for name in sorted(group):
            below = path.rstrip("/") + "/" + _text(name)
            link = group.links.get_info(name)
            if link.type == self.h5.h5l.TYPE_HARD:
                self._object(self.h5.h5o.open(group, name), below)
            elif link.type == self.h5.h5l.TYPE_SOFT:
                self.found.append((below, "link", _text(group.links.get_val(name))))
            elif link.type == self.h5.h5l.TYPE_EXTERNAL:
                self.found.append((below, "link elsewhere", [_text(part) for part in group.links.get_val(name)]))
            else:
                raise UnreadableError("a link of an unknown kind")

    def _object(self, found: Any, path: str) -> None:
        known = self.paths.get(self.h5.h5o.get_info(found).addr)
        if known is not None:
            self.found.append((path, "same as", known))
        elif isinstance(found, self.h5.h5g.GroupID):
            self._visit(found, path)
        elif isinstance(found, self.h5.h5d.DatasetID):
            self.paths[self.h5.h5o.get_info(found).addr] = path
            self.found.append((path, "dataset", found))
        elif isinstance(found, self.h5.h5t.TypeID):
            self.paths[self.h5.h5o.get_info(found).addr] = path
            self.found.append((path, "type", found))
        else:
            raise UnreadableError("an object of an unknown kind")

    def _described(self, path: str, kind: str, found: Any) -> dict[str, Any]:
        told: dict[str, Any] = {"path": path, kind: found if isinstance(found, (str, list)) else True}
        if kind not in ("group", "dataset", "type"):
            return told
        if kind == "dataset":
            told |= self._dataset(found)
        elif kind == "type":
            told["of"] = self._type(found)
        if attributes := self._attributes(found):
            told["attributes"] = attributes
        if self.h5.h5o.get_info(found).hdr.mesg.present & COMMENT:
            raise UnreadableError("an object with a comment, which h5py does not read reliably")
        return told | self._order(found, kind)

    def _order(self, found: Any, kind: str) -> dict[str, list[str]]:
        """Names in the order of their making, where the file keeps it: some readers go by it."""
        tracked, told = self.h5.h5p.CRT_ORDER_TRACKED, dict[str, list[str]]()
        if kind == "group" and found.get_create_plist().get_link_creation_order() & tracked:
            told["order"] = [_text(name) for name in sorted(found, key=lambda name: found.links.get_info(name).corder)]
        if kind != "type" and found.get_create_plist().get_attr_creation_order() & tracked:
            numbers = range(self.h5.h5a.get_num_attrs(found))
            made = {"index_type": self.h5.h5.INDEX_CRT_ORDER}
            told["order of attributes"] = [_text(self.h5.h5a.open(found, index=n, **made).name) for n in numbers]
        return told

    def _dataset(self, dataset: Any) -> dict[str, Any]:
        made = dataset.get_create_plist()
        if made.get_external_count() or made.get_layout() == self.h5.h5d.VIRTUAL:
            raise UnreadableError("the values of a dataset are in other files")
        return self._values(dataset, lambda array: dataset.read(self.h5.h5s.ALL, self.h5.h5s.ALL, array))

    def _attributes(self, found: Any) -> dict[str, Any]:
        h5a = self.h5.h5a
        names = [h5a.open(found, index=index).name for index in range(h5a.get_num_attrs(found))]
        told = {}
        for name in sorted(names):
            attribute = h5a.open(found, name)
            told[_text(name)] = self._values(attribute, attribute.read)
        return told

    def _values(self, held: Any, read: Any) -> dict[str, Any]:
        """Type, shape and digest of the values of a dataset or an attribute."""
        import numpy

        type_, told = held.get_type(), {"type": self._type(held.get_type())}
        if held.get_space().get_simple_extent_type() == self.h5.h5s.NULL:
            return told | {"shape": None}
        count = int(numpy.prod(held.shape, dtype=object))
        self.allowance.take(count * max(type_.get_size(), held.dtype.itemsize, 1))
        array = numpy.zeros(held.shape, held.dtype)
        if count:
            read(array)
        hasher = hashlib.sha256()
        for part in self._bits(array, held.dtype):
            hasher.update(part)
        return told | {"shape": list(held.shape), "values": hasher.hexdigest()}

    def _bits(self, array: Any, dtype: Any) -> Iterator[Any]:
        """What is in an array, unambiguously; what lies unused between the fields of a record is not in it."""
        import numpy

        if dtype.names:
            for name in dtype.names:
                yield from self._bits(array[name], dtype[name].base)
        elif dtype.kind == "O":
            for value in array.flat:
                yield from self._loose(value, dtype)
        else:
            yield numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8) if array.nbytes else b""

    def _loose(self, value: Any, dtype: Any) -> Iterator[Any]:
        """A value of a size of its own: text, a list, or a reference to another object."""
        import numpy

        if self.h5.check_ref_dtype(dtype) is not None:
            yield _sized(self._target(value).encode())
        elif self.h5.check_string_dtype(dtype) is not None:
            raw = value if isinstance(value, bytes) else str(value or "").encode("utf-8", "surrogateescape")
            self.allowance.take(len(raw))
            yield _sized(raw)
        elif (base := self.h5.check_vlen_dtype(dtype)) is not None:
            self.allowance.take(value.nbytes if hasattr(value, "nbytes") else 0)
            size = len(value) if hasattr(value, "__len__") else 0  # what was never written is 0
            yield size.to_bytes(8, "little")
            if size:
                yield from self._bits(value, numpy.dtype(base))
        else:
            raise UnreadableError("values of an unknown kind")

    def _target(self, reference: Any) -> str:
        if not isinstance(reference, self.h5.h5r.Reference) or isinstance(reference, self.h5.h5r.RegionReference):
            raise UnreadableError("a reference to a part of a dataset")
        if not reference:
            return ""
        found = self.h5.h5r.dereference(reference, self.root)
        known = self.paths.get(self.h5.h5o.get_info(found).addr) if found else None
        if known is None:
            raise UnreadableError("a reference to what is under no path")
        return known

    def _float(self, type_: Any) -> list[int]:
        """How a float is made up; of another make than these it would be rounded on reading."""
        if type_.get_fields() not in EXACT and not type_.equal(self.h5.h5t.NATIVE_LDOUBLE):
            raise UnreadableError("floats of a rare kind")
        return [*type_.get_fields(), type_.get_ebias(), type_.get_norm()]

    def _type(self, type_: Any) -> Any:
        """All that a type says of the values: two that differ in it mean different things by the same bits."""
        h5t, size = self.h5.h5t, type_.get_size()
        numbers = (h5t.INTEGER, h5t.FLOAT, h5t.BITFIELD)
        match type_.get_class():
            case class_ if class_ in numbers:
                told = [class_, size, type_.get_order(), type_.get_precision(), type_.get_offset()]
                told += [type_.get_sign()] if class_ == h5t.INTEGER else []
                told += self._float(type_) if class_ == h5t.FLOAT else []
            case h5t.STRING as class_:
                told = [class_, "any" if type_.is_variable_str() else size, type_.get_cset(), type_.get_strpad()]
            case h5t.OPAQUE as class_:
                told = [class_, size, _text(type_.get_tag())]
            case h5t.REFERENCE as class_:
                told = [class_]
            case h5t.VLEN as class_:
                told = [class_, self._type(type_.get_super())]
            case h5t.ARRAY as class_:
                told = [class_, list(type_.get_array_dims()), self._type(type_.get_super())]
            case h5t.COMPOUND as class_:
                told = [class_, [[name, self._type(type_.get_member_type(n))] for n, name in _members(type_)]]
            case h5t.ENUM as class_:
                values = sorted((name, type_.get_member_value(n)) for n, name in _members(type_))
                told = [class_, self._type(type_.get_super()), values]
            case _:
                raise UnreadableError("a type of an unknown kind")
        return told


def _members(type_: Any) -> list[tuple[int, str]]:
    return [(number, _text(type_.get_member_name(number))) for number in range(type_.get_nmembers())]


def _sized(raw: bytes) -> bytes:
    return len(raw).to_bytes(8, "little") + raw


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


H5 = Stabilizer(
    name="h5",
    version=1,
    patterns=("*.h5", "*.hdf5"),
    function=tree,
    reason="times, and how values are laid out and compressed in the file, do not belong to the values",
)
