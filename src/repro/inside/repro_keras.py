"""A .keras file without what is not the model: the time of its writing, and addresses in memory as names of layers."""

import json
import shutil
import zipfile

TIME = (1980, 1, 1, 0, 0, 0)
SAVED = "1980-01-01@00:00:00"


def save(model, path):
    """Write a Keras model; equal models are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    tidy(path)


def tidy(path):
    """Replace a .keras file by one of the same content whose bytes depend on nothing else."""
    beside = path.with_name(f".{path.name}.tidy")
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as after:
        for name in sorted(before.namelist()):
            member = zipfile.ZipInfo(name, date_time=TIME)
            member.create_system = 3  # else the bytes would tell where they were written
            member.external_attr = 0o644 << 16
            if name == "metadata.json":
                after.writestr(member, json.dumps({**json.loads(before.read(name)), "date_saved": SAVED}))
            elif name == "config.json":
                after.writestr(member, json.dumps(_renumbered(json.loads(before.read(name)), {})))
            else:
                with before.open(name) as source, after.open(member, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    beside.replace(path)


def _renumbered(value, known):
    """Names of shared objects, which are their addresses in memory, in the order of their appearance."""
    if isinstance(value, list):
        return [_renumbered(each, known) for each in value]
    if isinstance(value, dict):
        return {
            key: known.setdefault(each, len(known) + 1)
            if key == "shared_object_id" and isinstance(each, int)
            else _renumbered(each, known)
            for key, each in value.items()
        }
    return value
