"""One example for each stabilizer, and what it has always given."""

from __future__ import annotations

import io

import h5py
import numpy as np
import pytest

from repro.stabilize import registry
from tests.test_stabilizers import PICTURE, note, npy, page, picture, png
from tests.test_stabilizers_archives import gzipped, keras, tarred, zipped
from tests.test_stabilizers_tensorflow import event, function, graph, node, record, saved


def written_h5() -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened["x"] = np.arange(3, dtype="<f4")
        opened.attrs["k"] = "v"
    return file.getvalue()


GOLDEN = {
    "json@1": ("x.json", b'{"b": [1, 1.50, null], "a": "\xc3\xa9"}'),
    "jsonl@1": ("x.jsonl", b"1.0\n2\n"),
    "csv-float@1": ("x.csv", b'a,b\n1.50,"q"\n'),
    "tsv-float@1": ("x.tsv", b'a\tb\n1.50\t"q"\n'),
    "npy@1": ("x.npy", npy(np.arange(6, dtype="<f4").reshape(2, 3))),
    "png-pixels@1": ("x.png", png(picture("P"), pnginfo=note(Software="x", Title="y"))),
    "html@1": ("x.html", page(PICTURE)),
    "h5@1": ("x.h5", written_h5()),
    "fingerprint@1": ("fingerprint.pb", b"\x08\x01\x10\x02"),
    "zip@1": ("x.zip", zipped({"a.json": b'{"a": 1.0}', "b": b"b"})),
    "npz@1": ("x.npz", zipped({"a.npy": npy(np.arange(3, dtype="<i4"))})),
    "keras-zip@1": ("x.keras", keras()),
    "tar@1": ("x.tar", tarred({"a.json": b'{"a": 1.0}', "b": b"b"}, mode=0o755)),
    "gzip@1": ("x.tgz", gzipped(tarred({"a": b"a"}))),
    "tfevents@1": ("x.tfevents", record(event(1.0, 2, 0.5))),
    "saved-model@1": ("saved_model.pb", saved(graph(node("a", x=b"1"), functions=[function("f")]))),
}
DIGESTS = {
    "json@1": "a36b9d6b7c34f0d4",
    "jsonl@1": "e26ef679913b6d8b",
    "csv-float@1": "f559d75ada496dad",
    "tsv-float@1": "f559d75ada496dad",
    "npy@1": "0bc61c2fc414cff9",
    "png-pixels@1": "8f5434bce0217423",
    "html@1": "628b81fc18624b86",
    "h5@1": "61c0e18a48f86786",
    "fingerprint@1": "5c6037e17112ad25",
    "zip@1": "06b4160898e183a8",
    "npz@1": "d532b8f580d34046",
    "keras-zip@1": "e331bfd3320401e6",
    "tar@1": "1fe266a2a8e02ef3",
    "gzip@1": "720a65008ed22036",
    "tfevents@1": "ad07575650e475aa",
    "saved-model@1": "fdb7eaa3132967e6",
}


@pytest.mark.parametrize("label", GOLDEN)
def test_what_a_stabilizer_gives_stays_as_it_is_while_its_version_does(label: str) -> None:
    """Records of earlier runs have these digests."""
    found = registry.canonical(*GOLDEN[label])
    assert found is not None
    assert (found.stabilizer, found.sha256[:16]) == (label, DIGESTS[label])


def test_each_stabilizer_has_its_example() -> None:
    assert {f"{each.name}@1" for each in registry.OURS} == GOLDEN.keys()
